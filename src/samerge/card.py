"""The model card of a merged adapter, made from its record alone: no network, no template engine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

_PAPER = "[Saliency-Aware Model Merging](https://arxiv.org/abs/2606.00511) (SA-Merging)"
_IN_WORDS = {
    "saliency": (
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
    "cat": "The weighted sum of the adapters' updates, exactly, by laying their components side by side.",
    "compress": "The adapter with every layer's update replaced by its best approximation of a lower rank.",
    "extract": "The difference between the checkpoint's linear weights and the base's, truncated to a low rank (SVD).",
    "svd": "The weighted sum of the adapters' updates, brought to a lower rank by a truncated SVD.",
    "tsv": (
        "In every layer the singular vectors of all adapters, side by side, are replaced by the nearest orthonormal "
        "ones, so that directions which adapters share are divided among them (TSV-Merge: Gargiulo et al., 2024)."
    ),
}
#: What comes before a method, and what comes after it, by the option and its value.
_BEFORE = {
    ("balance", "norm"): "First the update of every adapter is brought to the adapters' mean norm, layer by layer.",
    ("balance", "global"): "First the update of every adapter is brought, as a whole, to the adapters' mean norm.",
}
_AFTER = {
    ("spectrum", "flat"): (
        "The singular values of every merged layer are made equal, in the spirit of Iso-C (Marczak et al., 2025)."
    ),
    ("scaling", "unit"): "The weights count in proportion to each other: brought to one, where they are the same.",
    ("scaling", "auto"): "The norm of every merged layer is set in proportion to the adapters' mean norm there.",
}
#: What became of the inputs of methods that do not merge.
_MADE = {"compress": "compressed", "extract": "extracted"}
_CLASS_OF_TASK = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_SEQ2SEQ = frozenset({"t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100"})
_HEADLESS = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "deberta", "deberta-v2", "mpnet", "electra", "albert"}
    | {"modernbert", "vit", "clip", "siglip", "dinov2", "whisper", "wav2vec2", "hubert"}
)


def model_card(record: Mapping[str, Any], repo_id: str | None = None) -> str:
    """The text of `README.md` for a merged adapter: metadata for the Hub, what was merged, how, and how to load it.

    Local folders, of the base or of the inputs, are named by their last part only, and stay out of the metadata.

    Args:
        record: what `samerge.json` holds. Keys that are missing are left out of the card.
        repo_id: where the adapter will be on the Hub, for the example. Default: a placeholder.

    Returns:
        Markdown with a YAML header, ending in a newline.

    Example:
        >>> card = model_card({"method": "linear", "base": {"name": "gpt2"}, "inputs": [{"name": "math"}]})
        >>> card.splitlines()[1:4]
        ['base_model: gpt2', 'library_name: peft', 'tags:']
    """
    sections = [
        _title(record),
        _recipe(record),
        _usage(record, repo_id),
        _inputs(record),
        _options(record),
        _kept(record),
        _diagnostics(record),
        _warnings(record),
        _provenance(record),
    ]
    body = "\n\n".join(section for section in sections if section)
    # Warnings and options quote what the user gave: there, too, a folder keeps its last part only.
    for folder in local_folders(record):
        body = last_part(folder).join(re.split(rf"(?<![\w./-]){re.escape(folder)}(?![\w-])", body))
    return f"---\n{_metadata(record)}\n---\n\n{body}\n"


def _metadata(record: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    base = _base_name(record)
    if _is_model(record):
        sources = [base, *(str(entry.get("source") or "") for entry in record.get("inputs") or ())]
        public = list(dict.fromkeys(name for name in sources if name and _on_hub(name)))
        related = {"base_model": public, "base_model_relation": "merge"} if public else {}
        whole = ModelCardData(library_name="transformers", tags=["merge", "samerge"], **related)
        return str(whole.to_yaml(line_break="\n")).strip()
    named = {"base_model": base, "base_model_relation": "adapter"} if base and _on_hub(base) else {}
    data = ModelCardData(library_name="peft", tags=["peft", "lora", "merge", "samerge"], **named)
    return str(data.to_yaml(line_break="\n")).strip()


def _title(record: Mapping[str, Any]) -> str:
    names = [_code(entry.get("name", "?")) for entry in record.get("inputs") or ()]
    base = _base_name(record)
    of_base = "" if not base else f" of {_link(base)}"
    if base and not _on_hub(base):
        of_base += " (from a local folder)"
    made = _MADE.get(str(record.get("method")), "merged")
    source = ("" if made != "merged" else f" {len(names)}") + (f": {', '.join(names)}" if names else "")
    what = f"One LoRA adapter{of_base}, {made} from{source}" if names else f"A merged LoRA adapter{of_base}"
    if _is_model(record):
        what = f"One model, merged from {len(names)} fine-tuned checkpoints{of_base}"
    title = " + ".join(str(entry.get("name", "?")) for entry in record.get("inputs") or ()) or "adapter"
    how = "No training; options tuned on labelled data" if "tuning" in record else "No data and no training"
    return f"# {made.capitalize()}: {_text(title)}\n\n{what}. {how}."


def _recipe(record: Mapping[str, Any]) -> str:
    method = record.get("method")
    if not method:
        return ""
    own = _IN_WORDS.get(method) or _chain_in_words(str(method))
    options = record.get("options") or {}
    before, after = (
        [words for (option, value), words in table.items() if options.get(option) == value]
        for table in (_BEFORE, _AFTER)
    )
    words = " ".join([*before, own, *after])
    recipe = f" The settings start from the recipe {_code(record['recipe'])}." if record.get("recipe") else ""
    output = record.get("output") or {}
    facts = [
        f"rank {output['rank']}" if "rank" in output else "",
        f"{output['tensors']:,} tensors" if "tensors" in output else "",
        f"{output['modules']:,} modules" if "modules" in output else "",
        f"{output['parameters']:,} parameters" if "parameters" in output else "",
        str(output.get("dtype", "")),
    ]
    result = f"\n\nThe result: {', '.join(fact for fact in facts if fact)}." if any(facts) else ""
    return f"## Method\n\n{words}{recipe}{result}"


def _chain_in_words(method: str) -> str:
    """A method without words of its own, or a selection and an aggregation."""
    selection, plus, aggregation = method.partition("+")
    if not plus:
        return f"The method {_code(method)} of samerge."
    score = f" Saliency is the score of {_PAPER}." if selection == "saliency" else ""
    combined = f" {_IN_WORDS[aggregation]}" if aggregation in _IN_WORDS else ""
    return (
        f"Rank-1 components of every adapter, selected by {_code(selection)}, combined by {_code(aggregation)}."
        f"{score}{combined}"
    )


def _usage(record: Mapping[str, Any], repo_id: str | None) -> str:
    base = _base_name(record)
    name = base if base and _on_hub(base) else f"path/to/{last_part(base)}" if base else "path/to/base"
    cls = _model_class(record)
    if _is_model(record):
        here = json.dumps(repo_id or "path/or/repository-of-this-model")
        lines = ["## Use", "", "```python", f"from transformers import {cls}", ""]
        return "\n".join([*lines, f"model = {cls}.from_pretrained({here})", "```"])
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "from peft import PeftModel",
            f"from transformers import {cls}",
            "",
            f"base = {cls}.from_pretrained({json.dumps(name)})",
            f"model = PeftModel.from_pretrained(base, {json.dumps(repo_id or 'path/or/repository-of-this-adapter')})",
            "```",
        ]
    )


def _inputs(record: Mapping[str, Any]) -> str:
    entries = record.get("inputs") or ()
    if not entries:
        return ""
    rows = [
        [
            _code(entry.get("name", "?")),
            _link(entry["source"]) if entry.get("source") else "",
            _number(entry.get("weight")),
            _number(entry.get("rank")),
            _code(next(iter(entry["sha256"].values()))[:12]) if entry.get("sha256") else "",
        ]
        for entry in entries
    ]
    if _is_model(record):
        rows = [[*row[:3], row[4]] for row in rows]
        return "## Checkpoints\n\n" + _table(["name", "source", "weight", "sha256"], rows)
    return "## Adapters\n\n" + _table(["name", "source", "weight", "rank", "sha256"], rows)


def _options(record: Mapping[str, Any]) -> str:
    options = record.get("options") or {}
    if not options:
        return ""
    # A path among the options would tell of the user's folders; an option is never a folder worth naming in full.
    rows = [
        [_code(key), _code(last_part(value) if _is_path(value) else value)] for key, value in sorted(options.items())
    ]
    return "## Configuration\n\n" + _table(["option", "value"], rows)


def _kept(record: Mapping[str, Any]) -> str:
    """For each expert, over its modules: how many components there were and were kept, and the mean energy kept."""
    layers = (record.get("layers") or {}).values()
    log_r = record.get("log_connectivity") or {}
    order = [str(entry.get("name", "?")) for entry in record.get("inputs") or ()]
    found = {name for layer in layers for name in layer.get("experts") or {}}
    names = [name for name in order if name in found] + sorted(found - set(order))
    rows = []
    for name in names:
        parts = [layer["experts"][name] for layer in layers if name in (layer.get("experts") or {})]
        available = sum(part.get("components", 0) for part in parts)
        chosen = all(part.get("kept") is not None for part in parts)
        kept = f"{sum(len(part['kept']) for part in parts):,}" if chosen else "all"
        elements = [
            sum(pair) for pair in zip(*(part["elements"] for part in parts if part.get("elements")), strict=True)
        ]
        energy = [part["energy"] for part in parts if part.get("energy") is not None]
        rows.append(
            [
                _code(name),
                f"{len(parts):,}",
                f"{elements[0]:,} of {elements[1]:,} elements" if elements else f"{kept} of {available:,}",
                f"{sum(energy) / len(energy):.1%}" if energy else "",
                _number(log_r.get(name)),
            ]
        )
    if not rows:
        return ""
    header = ["adapter", "modules", "components kept", "energy kept (mean over modules)", "log R"]
    notes = []
    lost = [layer["lost"] for layer in layers if layer.get("lost")]
    if lost:
        notes.append(f"Recompression lost at most {max(lost):.2%} of a module's energy.")
    outside = sum(bool(layer.get("outside")) for layer in layers)
    if outside:
        notes.append(f"Outside the flow graph, ranked by agreement alone: {outside:,} of {len(layers):,} modules.")
    return "\n\n".join(["## What was kept", _table(header, rows), *notes])


def _diagnostics(record: Mapping[str, Any]) -> str:
    """For each expert, how the merged update compares with its own."""
    found = record.get("diagnostics") or {}
    if not found.get("experts"):
        return ""
    keys = ("expected_retention", "cosine", "interference", "sign_conflict")
    rows = [
        [_code(name), *("" if row.get(key) is None else f"{row[key]:.2f}" for key in keys)]
        for name, row in found["experts"].items()
    ]
    header = ["adapter", "expected to be left", "cosine", "interference", "sign conflicts"]
    note = (
        "How the merged update compares with each adapter's own, from the weights alone. What is expected to be left "
        "is 1 for the adapter itself and 0 for the base model: an estimate, and no measurement on any task."
    )
    before, after = found.get("sign_conflict"), found.get("sign_conflict_after")
    if before is not None and after is not None:
        note += (
            f" Among the adapters, {before:.1%} of the signs of two are opposite, and {after:.1%} among what pruning "
            f"left of them."
        )
    return "\n\n".join(["## Compared with the adapters", _table(header, rows), note])


def _warnings(record: Mapping[str, Any]) -> str:
    lines = [f"- {_text(warning)}" for warning in record.get("warnings") or ()]
    return "## Warnings\n\n" + "\n".join(lines) if lines else ""


def _provenance(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted((record.get("versions") or {}).items()))
    made = f"Made with samerge {record.get('samerge', '')}".rstrip()
    when = f" on {record['created']}" if record.get("created") else ""
    return f"## Provenance\n\n{made}{when}{f' ({versions})' if versions else ''}. The full record is in `samerge.json`."


def _is_model(record: Mapping[str, Any]) -> bool:
    """Whether the record is that of a whole model, and not of an adapter."""
    return (record.get("output") or {}).get("kind") == "model"


def _model_class(record: Mapping[str, Any]) -> str:
    """The Auto class of the example, by the adapter's task where the record says it, else by the architecture."""
    task = (record.get("output") or {}).get("task_type")
    if task in _CLASS_OF_TASK:
        return _CLASS_OF_TASK[task]
    kind = (record.get("base") or {}).get("model_type")
    return "AutoModelForSeq2SeqLM" if kind in _SEQ2SEQ else "AutoModel" if kind in _HEADLESS else "AutoModelForCausalLM"


def _base_name(record: Mapping[str, Any]) -> str:
    return str((record.get("base") or {}).get("name") or "")


def _on_hub(name: str) -> bool:
    """Whether a source can be a repository id; a folder that exists is read first, so it is the folder."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def local_folders(record: Mapping[str, Any]) -> list[str]:
    """The local folders that the record names, as given and in full, the longest first."""
    given = [_base_name(record), *(str(entry.get("source") or "") for entry in record.get("inputs") or ())]
    local = {name for name in given if ("/" in name or "\\" in name) and not _on_hub(name)}
    return sorted(local | {os.path.abspath(name) for name in local}, key=lambda name: (-len(name), name))


def _is_path(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and (value[:1] in "/~." or "\\" in value) and value != "")


def last_part(name: Any) -> str:
    """The last part of a local path, of either kind of system."""
    return PurePosixPath(str(name).replace("\\", "/")).name or "folder"


def _link(name: Any) -> str:
    text = str(name)
    return f"[{_text(text)}](https://huggingface.co/{text})" if _on_hub(text) else _code(last_part(text))


def _number(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    """On one line, and with nothing in it that would end a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _code(value: Any) -> str:
    return f"`{_text(value).replace('`', chr(39))}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
