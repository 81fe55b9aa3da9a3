"""Whether a LoRA adapter can be served by vLLM, SGLang, LoRAX and llama.cpp as it is, and why not.

| server | what it asks |
|---|---|
| vLLM | rank at most 512, and `--max-lora-rank` to allow it; only lora_A and lora_B; patterns are ignored |
| SGLang | no pattern that changes a value; `use_rslora` is ignored |
| LoRAX | one rank in all layers of a type of module, and every layer there, or the type is dropped |
| llama.cpp | one alpha for all; the scale is alpha / r, whatever `use_rslora` says |

None of them converts DoRA, trained modules, biases or base weights that an initialisation changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samerge.adapters.config import pattern_value, scaling
from samerge.graph.module_names import layer_numbers, module_type

#: Ranks that vLLM's `--max-lora-rank` may be, and its default.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_DEFAULT = 16


@dataclass(frozen=True)
class Served:
    """What an adapter looks like to a server.

    Args:
        config: its `adapter_config.json`.
        ranks: the rank of each adapted module, by name.
        beside: what it has that is neither lora_A nor lora_B, in words, empty for a plain LoRA.
        missing: modules of the adapted types in layers that it does not adapt.
    """

    config: Mapping[str, Any]
    ranks: Mapping[str, int]
    beside: Sequence[str] = ()
    missing: Sequence[str] = ()


def servability(adapter: Served) -> dict[str, list[str]]:
    """For each server the reasons why it cannot serve an adapter right; none where it can."""
    return {server: [*_common(adapter), *rule(adapter)] for server, rule in _RULES.items()}


def hints(adapter: Served) -> list[str]:
    """What must be said to a server for it to serve the adapter."""
    rank = max(adapter.ranks.values(), default=0)
    if VLLM_DEFAULT < rank <= VLLM_RANKS[-1]:
        return [f"vLLM: start it with --max-lora-rank {next(allowed for allowed in VLLM_RANKS if allowed >= rank)}"]
    return []


def _common(adapter: Served) -> list[str]:
    found = []
    kind = str(adapter.config.get("peft_type"))
    if kind != "LORA":
        found.append(f"it is a {kind} adapter, not a LoRA")
    initial = str(adapter.config.get("init_lora_weights", True)).lower()
    if initial.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        found.append(f"init_lora_weights={initial!r} changed the base weights, which a server does not know")
    return [*found, *adapter.beside]


def _vllm(adapter: Served) -> list[str]:
    found = []
    rank = max(adapter.ranks.values(), default=0)
    if rank > VLLM_RANKS[-1]:
        found.append(f"rank {rank} is above {VLLM_RANKS[-1]}, the most that --max-lora-rank allows")
    return found + _other_scales(adapter, rslora=True, own_rank=False, reason="ignores rank_pattern and alpha_pattern")


def _sglang(adapter: Served) -> list[str]:
    found = []
    config = adapter.config
    for pattern, plain in (("rank_pattern", config.get("r")), ("alpha_pattern", config.get("lora_alpha"))):
        changed = [m for m in adapter.ranks if pattern_value(config.get(pattern), m, plain) != plain]
        if changed:
            found.append(f"refuses {pattern} where it changes a value, as of {changed[0]}")
    if config.get("use_rslora") and any(rank != 1 for rank in adapter.ranks.values()):
        found.append("ignores use_rslora, which makes the update too small")
    return found


def _lorax(adapter: Served) -> list[str]:
    found = []
    by_type: dict[str, set[int]] = {}
    for module, rank in adapter.ranks.items():
        by_type.setdefault(module_type(module), set()).add(rank)
    for kind, ranks in by_type.items():
        if len(ranks) > 1:
            found.append(f"drops {kind}: its layers have different ranks {sorted(ranks)}")
    missing = sorted({module_type(module) for module in adapter.missing})
    found.extend(f"drops {kind}: some of its layers are not adapted" for kind in missing)
    return found


def _llama_cpp(adapter: Served) -> list[str]:
    return _other_scales(adapter, rslora=False, own_rank=True, reason="has one alpha for all, and scales by alpha / r")


def _other_scales(adapter: Served, rslora: bool, own_rank: bool, reason: str) -> list[str]:
    """Where a server's scale is not PEFT's.

    Args:
        adapter: the adapter.
        rslora: whether the server knows rank-stabilised scaling.
        own_rank: whether it divides by each module's own rank, or by the configuration's.
        reason: what it does otherwise.
    """
    config = adapter.config
    if not {"r", "lora_alpha"} <= set(config):
        return []
    for module, rank in adapter.ranks.items():
        divisor = float(rank if own_rank else config["r"])
        divisor = math.sqrt(divisor) if rslora and config.get("use_rslora") else divisor
        theirs, ours = float(config["lora_alpha"]) / divisor, scaling(config, module)
        if not math.isclose(theirs, ours, rel_tol=1e-6):
            return [f"{reason}: {module} would be scaled by {theirs:.4g} in place of {ours:.4g}"]
    return []


def gaps(modules: Sequence[str]) -> list[str]:
    """Modules that a type lacks in layers where other adapted types have theirs; known without a base.

    Example:
        >>> gaps(["h.0.q", "h.1.q", "h.1.k"])
        ['h.0.k']
    """
    by_type: dict[str, dict[tuple[int, ...], str]] = {}
    for module in modules:
        by_type.setdefault(module_type(module), {})[layer_numbers(module)] = module
    found = []
    stacks: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for kind, layers in by_type.items():
        for numbers in layers:
            stacks.setdefault((kind.split("*")[0], len(numbers)), set()).add(numbers)
    for kind, layers in by_type.items():
        for numbers in sorted(stacks[kind.split("*")[0], kind.count("*")] - set(layers)):
            pieces = kind.split("*")
            found.append("".join(a + b for a, b in zip(pieces, [*map(str, numbers), ""], strict=True)))
    return sorted(found)


_RULES: dict[str, Callable[[Served], list[str]]] = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "LoRAX": _lorax,
    "llama.cpp": _llama_cpp,
}
