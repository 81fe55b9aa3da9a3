"""The model card of a merged adapter, made from its record alone: no network, no template engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samerge.report.markdown import code, one_line, table
from samerge.report.sharing import base_name, last_part, local_folders, on_hub
from samerge.report.wording import in_words

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

    base = base_name(record)
    if _is_model(record):
        sources = [base, *(str(entry.get("source") or "") for entry in record.get("inputs") or ())]
        public = list(dict.fromkeys(name for name in sources if name and on_hub(name)))
        related = {"base_model": public, "base_model_relation": "merge"} if public else {}
        whole = ModelCardData(library_name="transformers", tags=["merge", "samerge"], **related)
        return str(whole.to_yaml(line_break="\n")).strip()
    named = {"base_model": base, "base_model_relation": "adapter"} if base and on_hub(base) else {}
    data = ModelCardData(library_name="peft", tags=["peft", "lora", "merge", "samerge"], **named)
    return str(data.to_yaml(line_break="\n")).strip()


def _title(record: Mapping[str, Any]) -> str:
    names = [code(entry.get("name", "?")) for entry in record.get("inputs") or ()]
    base = base_name(record)
    of_base = "" if not base else f" of {_link(base)}"
    if base and not on_hub(base):
        of_base += " (from a local folder)"
    made = _MADE.get(str(record.get("method")), "merged")
    source = ("" if made != "merged" else f" {len(names)}") + (f": {', '.join(names)}" if names else "")
    what = f"One LoRA adapter{of_base}, {made} from{source}" if names else f"A merged LoRA adapter{of_base}"
    if _is_model(record):
        what = f"One model, merged from {len(names)} fine-tuned checkpoints{of_base}"
    title = " + ".join(str(entry.get("name", "?")) for entry in record.get("inputs") or ()) or "adapter"
    how = "No training; options tuned on labelled data" if "tuning" in record else "No data and no training"
    return f"# {made.capitalize()}: {one_line(title)}\n\n{what}. {how}."


def _recipe(record: Mapping[str, Any]) -> str:
    if not record.get("method"):
        return ""
    recipe = f" The settings start from the recipe {code(record['recipe'])}." if record.get("recipe") else ""
    output = record.get("output") or {}
    facts = [
        f"rank {output['rank']}" if "rank" in output else "",
        f"{output['tensors']:,} tensors" if "tensors" in output else "",
        f"{output['modules']:,} modules" if "modules" in output else "",
        f"{output['parameters']:,} parameters" if "parameters" in output else "",
        str(output.get("dtype", "")),
    ]
    result = f"\n\nThe result: {', '.join(fact for fact in facts if fact)}." if any(facts) else ""
    return f"## Method\n\n{in_words(record)}{recipe}{result}"


def _usage(record: Mapping[str, Any], repo_id: str | None) -> str:
    base = base_name(record)
    name = base if base and on_hub(base) else f"path/to/{last_part(base)}" if base else "path/to/base"
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
            code(entry.get("name", "?")),
            _link(entry["source"]) if entry.get("source") else "",
            _number(entry.get("weight")),
            _number(entry.get("rank")),
            code(next(iter(entry["sha256"].values()))[:12]) if entry.get("sha256") else "",
        ]
        for entry in entries
    ]
    if _is_model(record):
        rows = [[*row[:3], row[4]] for row in rows]
        return "## Checkpoints\n\n" + table(["name", "source", "weight", "sha256"], rows)
    return "## Adapters\n\n" + table(["name", "source", "weight", "rank", "sha256"], rows)


def _options(record: Mapping[str, Any]) -> str:
    options = record.get("options") or {}
    if not options:
        return ""
    # A path among the options would tell of the user's folders; an option is never a folder worth naming in full.
    rows = [[code(key), code(last_part(value) if _is_path(value) else value)] for key, value in sorted(options.items())]
    return "## Configuration\n\n" + table(["option", "value"], rows)


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
                code(name),
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
    return "\n\n".join(["## What was kept", table(header, rows), *notes])


def _diagnostics(record: Mapping[str, Any]) -> str:
    """For each expert, how the merged update compares with its own."""
    found = record.get("diagnostics") or {}
    if not found.get("experts"):
        return ""
    keys = ("expected_retention", "cosine", "interference", "sign_conflict")
    rows = [
        [code(name), *("" if row.get(key) is None else f"{row[key]:.2f}" for key in keys)]
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
    return "\n\n".join(["## Compared with the adapters", table(header, rows), note])


def _warnings(record: Mapping[str, Any]) -> str:
    lines = [f"- {one_line(warning)}" for warning in record.get("warnings") or ()]
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


def _is_path(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and (value[:1] in "/~." or "\\" in value) and value != "")


def _link(name: Any) -> str:
    text = str(name)
    return f"[{one_line(text)}](https://huggingface.co/{text})" if on_hub(text) else code(last_part(text))


def _number(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
