"""How what was made is loaded: the lines of the card and of the page, from the record alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from samerge.adapters.formats.table import named
from samerge.adapters.servers import of_pictures, vllm_rank
from samerge.report.record import Record
from samerge.report.sharing import last_part, repository

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
ADAPTER = "path/or/repository-of-this-adapter"
MODEL = "path/or/repository-of-this-model"


@dataclass(frozen=True)
class Way:
    """One way to load what was made.

    Args:
        title: what loads it.
        code: the lines to type.
        told: what is to be known beside them.
    """

    title: str
    code: str
    told: str = ""


def transformers_or_peft(record: Record, place: str | None = None) -> Way:
    """The way in Python: by transformers for a model, by PEFT for an adapter in its format.

    Args:
        record: of what was made.
        place: a folder or a repository. Default: a placeholder.
    """
    cls, library = model_class(record), library_of(record)
    if record.output.kind == "model":
        lines = [f"from {library} import {cls}", "", f"model = {cls}.from_pretrained({json.dumps(place or MODEL)})"]
        return Way(library, "\n".join(lines))
    return Way(
        "PEFT",
        "\n".join(
            [
                "from peft import PeftModel",
                f"from {library} import {cls}",
                "",
                f"base = {cls}.from_pretrained({json.dumps(base_name(record))})",
                f"model = PeftModel.from_pretrained(base, {json.dumps(place or ADAPTER)})",
            ]
        ),
    )


def ways(record: Record, place: str | None = None) -> list[Way]:
    """Every way that fits what was made: its format, its kind of model.

    Args:
        record: of what was made.
        place: where it lies. Default: a placeholder.
    """
    if record.output.kind == "model":
        return [transformers_or_peft(record, place), *_served(record, place)]
    format = record.output.format
    if format is not None:
        known = named(format)
        return [Way(known.title, known.use.format(path=place or ADAPTER))]
    if of_pictures(record.layers):
        return [_diffusers(place)]
    return [transformers_or_peft(record, place), *_served(record, place)]


def _served(record: Record, place: str | None) -> Iterator[Way]:
    """Servers of models that write text; they know no others, and not every record says what it is of."""
    known = record.output.task_type or record.base.model_type
    if not known or library_of(record) == "diffusers" or _auto_class(record) != "AutoModelForCausalLM":
        return
    base = shlex.quote(base_name(record))
    if record.output.kind == "model":
        yield Way("vLLM", f"vllm serve {shlex.quote(place or MODEL)}")
        return
    here = shlex.quote(place or ADAPTER)
    rank = vllm_rank(record.output.rank or 0)
    if rank is not None:
        lines = [f"vllm serve {base} --enable-lora --max-lora-rank {rank} \\", f"    --lora-modules merged={here}"]
        yield Way("vLLM", "\n".join(lines), told="Requests name it as their model: merged.")
    lines = [f"samerge convert {here} --format gguf --out merged.gguf", "llama-cli -m BASE.gguf --lora merged.gguf"]
    yield Way("llama.cpp", "\n".join(lines), told=f"samerge check {here} says whether these take it as it is.")


def _diffusers(place: str | None) -> Way:
    lines = [
        f"samerge convert {shlex.quote(place or ADAPTER)} --format diffusers --out style.safetensors",
        "",
        'pipe.load_lora_weights("style.safetensors")  # in Python',
    ]
    return Way("diffusers", "\n".join(lines))


def base_name(record: Record) -> str:
    """The base as an example names it: a repository as it is, a local folder by its last part."""
    base = record.base.name or ""
    return base if base and repository(record.base) else f"path/to/{last_part(base)}" if base else "path/to/base"


def library_of(record: Record) -> str:
    """Whose model the base is: diffusers names its class where transformers names a family."""
    base = record.base
    return "diffusers" if base.model_class and base.model_class == base.model_type else "transformers"


def model_class(record: Record) -> str:
    """The class that loads what was made, or the base of an adapter.

    A model, and whatever is diffusers', has its own. The base of an adapter of transformers has the Auto class of the
    adapter's task, or of its family: an adapter may be of another head than the checkpoint was saved with.
    """
    own = record.base.model_class
    if own and (record.output.kind == "model" or library_of(record) == "diffusers"):
        return own
    return _auto_class(record)


def _auto_class(record: Record) -> str:
    if record.output.task_type in _CLASS_OF_TASK:
        return _CLASS_OF_TASK[record.output.task_type]
    kind = record.base.model_type
    return "AutoModelForSeq2SeqLM" if kind in _SEQ2SEQ else "AutoModel" if kind in _HEADLESS else "AutoModelForCausalLM"
