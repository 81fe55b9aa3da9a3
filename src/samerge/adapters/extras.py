"""What an adapter's file holds beside LoRA factors, told apart by the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from samerge.adapters.model import Extras, Load, TokenRows
from samerge.errors import AdapterError

_TOKENS = ".token_adapter.trainable_tokens_delta"
#: Components that PEFT's wrappers put into the names of what they wrap.
INSIDE = frozenset({"base_layer", "original_module", "token_adapter", "modules_to_save"})


def extras_of(
    adapter: str, config: Mapping[str, Any], others: Mapping[str, str], read: Callable[[str], Load]
) -> Extras:
    """The other tensors of an adapter by what they are.

    Args:
        adapter: its name, for messages.
        config: its configuration.
        others: plain name -> key in the file, of all that is not a LoRA factor.
        read: gives the loader of a key.

    Raises:
        AdapterError: a tensor is none of the known kinds.
    """
    biases: dict[str, Load] = {}
    saved: dict[str, Load] = {}
    tokens: dict[str, TokenRows] = {}
    copies: dict[str, Load] = {}
    unknown = []
    for name, key in others.items():
        parts = name.split(".")
        plain = ".".join(part for part in parts if part not in INSIDE)
        if name.endswith(_TOKENS):
            embedding = name.removesuffix(_TOKENS)
            tokens[embedding] = TokenRows(token_indices(config, embedding), read(key))
        elif config.get("bias", "none") != "none" and parts[-1] == "bias":
            biases[plain] = read(key)
        elif "original_module" in parts or "base_layer" in parts:
            copies[plain] = read(key)
        elif is_saved(config, plain):
            saved[plain] = read(key)
        elif parts[-1] == "weight" and parts[-2:-1] and _looks_embedded(parts[-2]):
            copies[plain] = read(key)
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise AdapterError(
            f"reading adapter {adapter!r}: its file also holds {', '.join(unknown[:4])}{more}, which are not LoRA "
            f"factors and not named in its configuration; leaving them out would change what the adapter does"
        )
    return Extras(biases, saved, tokens, copies)


def is_saved(config: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor belongs to one of `modules_to_save`, which PEFT matches by the end of the module's name."""
    parts = name.split(".")
    modules = [".".join(parts[:cut]) for cut in range(1, len(parts))]
    return any(module.endswith(entry) for entry in config.get("modules_to_save") or () for module in modules)


def token_indices(config: Mapping[str, Any], embedding: str) -> tuple[int, ...]:
    """The trained rows of an embedding: a list for the input embedding, or a mapping by the end of its name."""
    indices = config.get("trainable_token_indices") or ()
    if isinstance(indices, Mapping):
        indices = next((rows for entry, rows in indices.items() if embedding.endswith(entry)), ())
    return tuple(int(row) for row in indices)


def _looks_embedded(module: str) -> bool:
    """Whether `save_embedding_layers` may have written this module: an embedding or an output head, by its name."""
    return module in ("lm_head", "wte", "shared", "output", "embed_out") or "embed" in module
