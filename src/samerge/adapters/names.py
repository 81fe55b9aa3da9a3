"""The keys of an adapter's file: wrappers around the model taken off, and what each LoRA tensor belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from samerge.adapters.config import is_target_module, place, target_parameters
from samerge.adapters.layouts import Kind
from samerge.errors import AdapterError

#: Components that training wrappers put into names: torch.compile, FSDP, activation checkpointing.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"^(?P<path>.+)\.(?P<part>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<leaf>weight|bias))?$"
)
#: What a factor's key ends with: itself, a bias, or the scale of its eight-bit numbers.
_LEAF = r"(?:weight|bias|weight_scale|weight_scale_inv|scale_weight)"
#: A factor's key with the name that its adapter has on the model: `...lora_A.default.weight`, `...hada_w1_a.default`.
_FACTOR = re.compile(
    r"(?P<before>.+\.(?:lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)|hada_\w+|lokr_\w+))"
    rf"\.(?P<adapter>(?!{_LEAF}(?:\.|$))[^.]+(?:\.(?!{_LEAF}$)[^.]+)?)(?P<after>(?:\.{_LEAF})?)"
)
#: Likewise, of what lies beside factors.
_BESIDE = re.compile(
    r"(?P<before>.+\.(?:modules_to_save|trainable_tokens_delta))\.(?P<adapter>[^.]+)(?P<after>(?:\..+)?)"
)


@dataclass(frozen=True)
class Target:
    """What the factors under one path of PEFT's belong to.

    Args:
        kind: how PEFT stores them.
        name: of the weight in the base model, without `.weight` where it is a module's.
        place: for a parameter, its place among those of its module.
        transposed: for a stack of parameters, whether the model says that it is stored (in, out).
    """

    kind: Kind
    name: str
    place: int = 0
    transposed: bool = False


def plain_name(key: str) -> str:
    """A key without PEFT's prefix and without what torch.compile, FSDP, checkpointing and DDP add.

    Example:
        >>> plain_name("module.base_model.model._orig_mod.layers.0._fsdp_wrapped_module.q.lora_A.weight")
        'layers.0.q.lora_A.weight'
    """
    name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    if name.startswith(f"module.{_PREFIX}"):
        name = name.removeprefix("module.")
    while name.startswith(_PREFIX):  # several times for a PeftModel that was put into a PeftModel
        name = name.removeprefix(_PREFIX)
    return name


def unnamed(keys: Iterable[str]) -> dict[str, str]:
    """Keys without the name that their adapter has on the model, each with the key that it comes from.

    Those of a state dict that was saved as it is have that name: `default`, one that the trainer gave, `default_0`.

    Raises:
        ValueError: they are of several adapters, or two mean the same tensor.

    Example:
        >>> unnamed(["q.lora_A.policy.weight", "head.modules_to_save.policy.weight"])  # doctest: +NORMALIZE_WHITESPACE
        {'q.lora_A.weight': 'q.lora_A.policy.weight',
         'head.modules_to_save.weight': 'head.modules_to_save.policy.weight'}
        >>> unnamed(["q.lora_A.0.weight", "q.lora_A.1.weight"])
        Traceback (most recent call last):
        ...
        ValueError: it holds the factors of several adapters (0, 1), or of a mixture of them; save each one by itself
    """
    keys = list(keys)
    factors = {key: match for key in keys if (match := _FACTOR.fullmatch(key))}
    names = {match["adapter"] for match in factors.values()}
    if len(names) > 1:
        raise ValueError(
            f"it holds the factors of several adapters ({', '.join(sorted(names))}), or of a mixture of them; save "
            f"each one by itself"
        )
    found: dict[str, str] = {}
    for key in keys:
        match = factors.get(key) or _BESIDE.fullmatch(key)
        plain = match["before"] + match["after"] if match and match["adapter"] in {"default", *names} else key
        if plain in found:
            raise ValueError(
                f"its keys {found[plain]!r} and {key!r} mean the same tensor; was it written from two copies "
                f"of the model?"
            )
        found[plain] = key
    return found


def sort_keys(adapter: str, keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The keys of a file by what they are.

    Returns:
        For each path of a LoRA layer, its parts (`lora_A`, `lora_B`, `bias`, ...) and their keys; and all other
        tensors by their plain names. Both sorted.

    Raises:
        AdapterError: two keys mean the same tensor.
    """
    lora: dict[str, dict[str, str]] = {}
    others: dict[str, str] = {}
    for key in sorted(keys):
        name = plain_name(key)
        match = _LORA.match(name)
        if match is None:
            table, entry = others, name
        else:
            table = lora.setdefault(match["path"], {})
            entry = "bias" if match["leaf"] == "bias" else match["part"]
        if entry in table:
            raise AdapterError(
                f"reading adapter {adapter!r}: the keys {table[entry]!r} and {key!r} of its file mean the same tensor; "
                f"was it written from two copies of the model?"
            )
        table[entry] = key
    return dict(sorted(lora.items())), others


def targets_of(adapter: str, paths: Iterable[str], config: Mapping[str, Any]) -> dict[str, Target]:
    """What each path means. A path may hold `base_layer` where PEFT nests its wrappers:

    | path | belongs to |
    |---|---|
    | `mha`, beside `mha.base_layer.out_proj` | `mha.in_proj_weight` of an `nn.MultiheadAttention` |
    | `mha.base_layer.out_proj` | `mha.out_proj.weight` of the same |
    | `experts`, where `target_parameters` has a parameter of it | the outermost of its adapted parameters |
    | `experts.base_layer` | the next one inside |

    Raises:
        AdapterError: the parameters of a module cannot be told from its wrappers.
    """
    paths = list(paths)
    found: dict[str, Target] = {}
    depths: dict[str, list[int]] = {}
    for path in paths:
        bare = path
        while bare.endswith(".base_layer"):
            bare = bare.removesuffix(".base_layer")
        if bare != path or (target_parameters(config, path) and not is_target_module(config, path)):
            depths.setdefault(bare, []).append((len(path) - len(bare)) // len(".base_layer"))
        elif f"{path}.base_layer.out_proj" in paths:
            found[path] = Target("in_proj", f"{path}.in_proj_weight")
        elif path.endswith(".base_layer.out_proj"):
            found[path] = Target("out_proj", path.replace(".base_layer.out_proj", ".out_proj"))
        else:
            found[path] = Target("linear", path)
    for module, nested in depths.items():
        names = target_parameters(config, module)
        if sorted(nested) != list(range(len(names))):
            raise AdapterError(
                f"reading adapter {adapter!r}, module {module!r}: it has {len(nested)} nested LoRA layers, but "
                f"target_parameters={sorted(config.get('target_parameters') or ())} names {names} there; file and "
                f"configuration do not belong together"
            )
        for depth in nested:
            short = names[len(names) - 1 - depth]
            found[module + ".base_layer" * depth] = Target("parameter", f"{module}.{short}", place(short))
    return found
