"""What an adapter's file holds beside LoRA factors, told apart by the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from samerge.adapters.model import Extras, Load, TokenRows

_TOKENS = ".token_adapter.trainable_tokens_delta"

#: Task -> the heads that PEFT trains and saves with every adapter of it.
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}

#: Components that PEFT's wrappers put into the names of what they wrap.
INSIDE = frozenset({"base_layer", "original_module", "token_adapter", "modules_to_save"})


def extras_of(config: Mapping[str, Any], others: Mapping[str, str], read: Callable[[str], Load]) -> Extras:
    """The other tensors of an adapter by what they are.

    Args:
        config: its configuration.
        others: plain name -> key in the file, of all that is not a LoRA factor.
        read: gives the loader of a key.

    What lies under a module that is saved whole belongs to that module, whatever `bias` says; its `original_module` is
    what it was before, and means nothing. A tensor that the configuration does not speak of is taken for a copy of the
    base's, which has to be compared with it.
    """
    biases: dict[str, Load] = {}
    saved: dict[str, Load] = {}
    tokens: dict[str, TokenRows] = {}
    copies: dict[str, Load] = {}
    for name, key in sorted(others.items(), key=lambda item: "modules_to_save" not in item[0].split(".")):
        parts = name.split(".")
        plain = ".".join(part for part in parts if part not in INSIDE)
        before = "original_module" in parts or "base_layer" in parts
        if name.endswith(_TOKENS):
            embedding = name.removesuffix(_TOKENS)
            tokens[embedding] = TokenRows(token_indices(config, embedding), read(key))
        elif is_saved(config, plain):
            if not before:
                saved[plain] = read(key)  # the key without `modules_to_save` comes last: it is the one that PEFT reads
        elif config.get("bias", "none") != "none" and parts[-1] == "bias":
            biases[plain] = read(key)
        else:
            copies[plain] = read(key)
    return Extras(biases, dict(sorted(saved.items())), tokens, copies)


def saved_modules(config: Mapping[str, Any]) -> list[str]:
    """The modules that are saved whole, as endings of names: `modules_to_save`, and the head that PEFT trains by task.

    Up to PEFT 0.10 the head is in the file and not in `modules_to_save`.

    Example:
        >>> saved_modules({"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]})
        ['pooler', 'classifier', 'score']
    """
    named = list(config.get("modules_to_save") or ())
    return [*named, *(head for head in HEADS.get(str(config.get("task_type")), ()) if head not in named)]


def is_saved(config: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor belongs to a module that is saved whole, which PEFT matches by the end of the module's name."""
    parts = name.split(".")
    modules = [".".join(parts[:cut]) for cut in range(1, len(parts))]
    return any(module.endswith(entry) for entry in saved_modules(config) for module in modules)


def token_indices(config: Mapping[str, Any], embedding: str) -> tuple[int, ...]:
    """The trained rows of an embedding: a list for the input embedding, or a mapping by the end of its name.

    An output head that is tied to the only embedding has its rows.
    """
    indices = config.get("trainable_token_indices") or ()
    if isinstance(indices, Mapping):
        only = next(iter(indices.values())) if len(indices) == 1 else ()
        indices = next((rows for entry, rows in indices.items() if embedding.endswith(entry)), only)
    return tuple(int(row) for row in indices)
