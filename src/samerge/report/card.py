"""The model card of a merged adapter, made from its record alone: no network, no template engine."""

from __future__ import annotations

from typing import Any

from samerge.adapters.formats.table import named
from samerge.report.loading import ADAPTER, library_of, transformers_or_peft
from samerge.report.markdown import code, table
from samerge.report.record import Record
from samerge.report.sharing import is_path, last_part, local_folders, repository, shortened
from samerge.report.sinks import markdown
from samerge.report.tables import adapters_table
from samerge.report.wording import in_words, made, origin_of, what
from samerge.weights.published import Card


def model_card(record: Record) -> str:
    """The text of `README.md`: metadata for the Hub, what was merged, how, what became of it, and how to load it.

    Local folders, of the base or of the inputs, are named by their last part only, and stay out of the metadata.

    Args:
        record: of what was made.

    Returns:
        Markdown with a YAML header, ending in a newline.
    """
    sections = [
        _title(record),
        _method(record),
        _usage(record),
        _inputs(record),
        _options(record),
        _figures(record),
        _warnings(record),
        _provenance(record),
    ]
    body = "\n\n".join(section for section in sections if section)
    # Warnings and options quote what the user gave: there, too, a folder keeps its last part only.
    body = shortened(body, local_folders(record))
    return f"---\n{_metadata(record)}\n---\n\n{body}\n"


def _metadata(record: Record) -> str:
    base = record.base.name or ""
    known = [base] if repository(record.base) else []
    inherited = {**_terms(record), **_merged_from(record)}
    if _is_model(record):
        public = list(dict.fromkeys([*known, *filter(None, map(repository, record.inputs))]))
        related = {"base_model": public, "base_model_relation": "merge"} if public else {}
        return _yaml({"library_name": library_of(record), "tags": ["merge", "samerge"], **related, **inherited})
    named = {"base_model": base, "base_model_relation": "adapter"} if known else {}
    return _yaml({"library_name": "peft", "tags": ["peft", "lora", "merge", "samerge"], **named, **inherited})


def _terms(record: Record) -> dict[str, str]:
    """The licence and the use that every input's card names, and names alike; what one leaves open is left open.

    A whole model holds the base's weights, whose card nobody read: its licence is left open.
    """
    cards = [one.card or Card() for one in record.inputs]
    licence = () if _is_model(record) else (("license", "license_name", "license_link"),)
    fields: tuple[tuple[str, ...], ...] = (*licence, ("pipeline_tag",))
    found: dict[str, str] = {}
    for together in fields:
        said = {tuple(getattr(card, name) for name in together) for card in cards}
        if len(said) == 1:
            found |= {name: value for name, value in zip(together, said.pop(), strict=True) if value}
    return found


def _merged_from(record: Record) -> dict[str, Any]:
    """The inputs that were read from the Hub, with commits and weights; the Hub has no field of its own for them."""
    found = [
        {"id": name, "revision": one.revision, "weight": one.weight}
        for one in record.inputs
        if one.revision and (name := repository(one))
    ]
    return {"merged_from": found} if found else {}


def _yaml(fields: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(fields, allow_unicode=True, line_break="\n")).strip()


def _title(record: Record) -> str:
    names = " + ".join(one.name for one in record.inputs)
    return f"# {made(record).capitalize()}: {markdown(names)}\n\n{what(record)}"


def _method(record: Record) -> str:
    output = record.output
    facts = f"{output.size}, {output.modules:,} modules, {output.parameters:,} parameters, {output.dtype}"
    return f"## Method\n\n{in_words(record)}\n\nThe result: {facts}."


def _usage(record: Record) -> str:
    if not _is_model(record) and record.output.format is not None:
        format = named(record.output.format)
        return f"## Use\n\nThis is {format.title}: {code(format.use.format(path=ADAPTER))}"
    return f"## Use\n\n```python\n{transformers_or_peft(record).code}\n```"


def _inputs(record: Record) -> str:
    rows = []
    whole = _is_model(record) and record.method != "bake"
    terms = [one.card.terms if one.card else () for one in record.inputs]
    for one, licence in zip(record.inputs, terms, strict=True):
        digest = next(iter((one.sha256 or {}).values()), "")
        rank = [] if whole else ["" if one.rank is None else str(one.rank)]
        said = [markdown(" ".join(licence)) or "not said"] if any(terms) else []
        rows.append(
            [code(one.name), origin_of(one), f"{one.weight:g}", *rank, code(digest[:12]) if digest else "", *said]
        )
    head = ["name", "source", "weight", *([] if whole else ["rank"]), "sha256", *(["licence"] if any(terms) else [])]
    known = set(terms) - {()}
    differ = "\n\nThe licences differ; see what they allow together." if len(known) > 1 else ""
    return f"## {'Checkpoints' if whole else 'Adapters'}\n\n{table(head, rows)}{differ}"


def _options(record: Record) -> str:
    if not record.options:
        return ""
    # A path among the options would tell of the user's folders; an option is never a folder worth naming in full.
    given = sorted(record.options.items())
    rows = [[code(key), code(last_part(value) if is_path(value) else value)] for key, value in given]
    return "## Configuration\n\n" + table(["option", "value"], rows)


def _figures(record: Record) -> str:
    """What became of every adapter: the table that `samerge inspect` shows."""
    told = "From the weights alone; nothing here was measured on a task."
    outside = sum(layer.outside for layer in record.layers.values())
    if outside:
        told += f" Outside the flow graph: {outside:,} of {len(record.layers):,} modules."
    return f"## What became of the adapters\n\n{adapters_table(record).markdown()}\n\n{told}"


def _warnings(record: Record) -> str:
    lines = [f"- {markdown(warning)}" for warning in record.warnings]
    return "## Warnings\n\n" + "\n".join(lines) if lines else ""


def _provenance(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()) if version)
    made = f"Made with samerge {record.samerge}".rstrip()
    when = f" on {record.created}" if record.created else ""
    return f"## Provenance\n\n{made}{when}{f' ({versions})' if versions else ''}. The full record is in `samerge.json`."


def _is_model(record: Record) -> bool:
    """Whether the record is that of a whole model, and not of an adapter."""
    return record.output.kind == "model"
