"""A merge in words: what was made of what; a sentence for every method and for the balance that comes before it."""

from __future__ import annotations

from samerge.methods.registry import summaries
from samerge.options.calibration import RANDOM
from samerge.report.markdown import code
from samerge.report.record import Record
from samerge.report.sharing import last_part, repository
from samerge.report.sinks import markdown
from samerge.report.stored import Input

_PAPER = "[Saliency-Aware Model Merging](https://arxiv.org/abs/2606.00511) (SA-Merging)"
_TSV = "([TSV-Merge](https://arxiv.org/abs/2412.00081))"
_CHAIN = f"their singular vectors are decorrelated from the other adapters' {_TSV} and they all get one strength."
_METHODS = {
    "saliency": (
        f"In every layer the singular components of all adapters are ranked by saliency, after {_PAPER}: how much the "
        "connectivity of the adapted network depends on a component, times how well it agrees with the weighted sum. "
        f"The most salient ones are kept, {_CHAIN}"
    ),
    "even": (
        f"In every layer the largest singular components of all adapters are kept, {_CHAIN} The base was not read."
    ),
    "paper": (
        f"{_PAPER}: every rank-1 component of every adapter is scored by how much the connectivity of the adapted "
        "network depends on it and by how well it agrees with the merged update; the least salient ones are pruned "
        "over several iterations, and what is kept is summed."
    ),
    "elementwise": (
        f"{_PAPER}, element by element: the elements of every update are scored by how much the connectivity of the "
        "adapted network depends on them and by how well they agree with the merged update; the most salient ones "
        "are kept and summed."
    ),
    "linear": "The weighted sum of the adapters' updates.",
    "svd": "The weighted sum of the adapters' updates, brought to a lower rank by a truncated SVD.",
    "bake": "The weighted sum of the adapters' updates, added to the base's weights.",
    "compress": "The adapter with every layer's update replaced by its best approximation of a lower rank.",
    "convert": "The adapter itself, in another format.",
    "extract": "The difference between the checkpoint's linear weights and the base's, truncated to a low rank (SVD).",
}
#: What comes before a method.
_BEFORE = {
    "norm": "First the adapters of a layer are brought to their mean norm there, so that each has one voice.",
}


#: What became of the inputs of methods that do not merge.
_MADE = {"bake": "baked", "compress": "compressed", "convert": "converted", "extract": "extracted"}


def made(record: Record) -> str:
    """What was done, in one word."""
    return _MADE.get(record.method, "merged")


def what(record: Record, most: int | None = None) -> str:
    """What was made of what, in a sentence or two.

    Args:
        record: of what was made.
        most: how many inputs are named. Default: all.

    Returns:
        Markdown.
    """
    names = [one.name for one in record.inputs]
    listed = ", ".join(code(name) for name in names[:most])
    left = len(names) - len(names[:most])
    if left:
        listed += f" and {left:,} more"
    base = record.base.name or ""
    of_base = ""
    if base:
        place = repository(record.base)
        of_base = f" of {_link(base, place)}" if place else f" of {code(last_part(base))} (from a local folder)"
    count = f" {len(names)}" if made(record) == "merged" else ""
    told = f"One LoRA adapter{of_base}, {made(record)} from{count}: {listed}"
    if record.method == "bake":
        told = f"One model{of_base} with {len(names)} LoRA adapters baked in: {listed}"
    elif record.output.kind == "model":
        told = f"One model, merged from {len(names)} fine-tuned checkpoints{of_base}"
    given = record.options.get("calibration")
    how = "No data and no training"
    if given is not None:
        on = "tokens drawn at random" if given == RANDOM else "some inputs without labels"
        how = f"No training; the base was run once, on {on}"
    if record.tuning is not None:
        how = "No training; options tuned on labelled data"
    return f"{told}. {how}."


def origin_of(one: Input) -> str:
    """Where an input is from: a repository as a link to the commit that was read, a local folder by its last part."""
    found = repository(one)
    if found is None:
        return code(last_part(one.source)) if one.source else ""
    return _link(one.source, f"{found}/tree/{one.revision}" if one.revision else found)


def _link(name: str | None, place: str) -> str:
    return f"[{markdown(str(name))}](https://huggingface.co/{place})"


def in_words(record: Record) -> str:
    """How a merge was made, in the order of its steps.

    Returns:
        A paragraph of Markdown.
    """
    before = _BEFORE.get(str(record.options.get("balance")), "") if len(record.inputs) > 1 else ""
    told = _METHODS.get(record.method) or f"The method {code(record.method)} of samerge{_summary(record.method)}."
    metric = ""
    if record.options.get("calibration") is not None:
        metric = "All of this was done in the metric of what each layer takes, as the base was run."
    return f"{before} {told} {metric}".strip()


def _summary(method: str) -> str:
    """The first line of a method's file, where it is one of samerge's."""
    line = summaries().get(method, "")
    return f": {line.rstrip('.')}" if line else ""
