"""PEFT's AdaLoRA, which is a LoRA exactly: the update is B diag(E) A, times alpha / (r + 1e-5) as PEFT computes it.

r is the rank that was left to the module, as many rows as its tensors have.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from samerge.adapters.describe import described
from samerge.adapters.extras import extras_of
from samerge.adapters.formats.format import Format, Place
from samerge.adapters.formats.pairs import adapter, kind_config, pair
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.names import Target, sort_keys
from samerge.weights.fields import NUMBER

TITLE = "AdaLoRA of PEFT"
#: What PEFT adds to the rank that it divides by.
_EPSILON = 1e-5


def reads(place: Place) -> bool:
    """Whether the configuration says so."""
    return place.config is not None and place.config.get("peft_type") == "ADALORA"


def open_folder(place: Place) -> Adapter:
    """The adapter in a folder.

    Raises:
        AdapterError: a file is broken.
    """
    origin = place.origin(TITLE)
    config = kind_config(place, {"lora_alpha": NUMBER}, origin)
    lora, others = sort_keys(place.name, place.keys)
    modules: dict[str, AdaptedModule] = {}
    for path, parts in lora.items():
        embedding = "lora_embedding_A" in parts
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if set(parts) != {a, b, "lora_E"}:
            raise origin.refusal(f"module {path!r} has {sorted(parts)}, expected {a}, {b} and lora_E")
        stored = pair(place, path, parts, a, b, origin)
        rank, shape = stored.shapes[0][0], place.tensors.entries[parts["lora_E"]].shape
        if shape != (rank, 1):
            raise origin.refusal(f"module {path!r}: lora_E has shape {shape}, expected ({rank}, 1), as {a} has")
        read = partial(_read, place, parts[a], parts[b], parts["lora_E"])
        alpha = float(config["lora_alpha"])
        scale = (alpha if alpha > 0 else rank) / (rank + _EPSILON)
        stored = replace(stored, embedding=embedding, read=read)
        turned = bool(config.get("fan_in_fan_out"))
        modules.update(described(place.name, Target("linear", path), {}, stored, scale, turned, rank))
    extras = extras_of(config, others, lambda key: partial(place.tensors.read, key))
    return replace(adapter(place, FORMAT.family, modules, config), extras=extras)


def _read(place: Place, a: str, b: str, e: str) -> tuple[Tensor, Tensor]:
    A, B, E = (place.tensors.read(key).float() for key in (a, b, e))
    return A * E, B


FORMAT = Format("adalora", TITLE, reads, open_folder, family="peft")
