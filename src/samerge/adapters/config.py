"""What an adapter's configuration says about one module: its rank, its scale, whether it was targeted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from samerge.adapters.patterns import compiled, is_plain, spend

#: So many module names are compared in the time of one step of a pattern.
_PER_STEP = 16


def scaling(config: Mapping[str, Any], module: str) -> float:
    """LoRA's scale of a module: alpha / r, or alpha / sqrt(r) with rsLoRA, after the patterns of the configuration.

    Example:
        >>> scaling({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 16}}, "layers.0.q_proj")
        4.0
    """
    rank = pattern_value(config.get("rank_pattern"), module, config["r"])
    alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of PEFT's `rank_pattern` or `alpha_pattern` for a module: the first key that matches its name's end.

    PEFT matches `(.*\\.)?(key)$`.

    Raises:
        PatternError: a key cannot be matched within the bounds of `patterns.py`.
    """
    if not pattern:
        return default
    starts = [0, *(place + 1 for place, letter in enumerate(module) if letter == ".")]
    endings = {len(module) - start: module[start:] for start in starts}
    spend(1 + len(pattern) // _PER_STEP)
    for key, value in pattern.items():
        if is_plain(key):  # no operator but the dot, which stands for any letter: names of the same length
            ending = endings.get(len(key))
            found = ending is not None and (key == ending or re.fullmatch(key, ending) is not None)
        else:
            found = compiled(key).matches(module, starts)
        if found:
            return value
    return default


def is_target_module(config: Mapping[str, Any], module: str) -> bool:
    """Whether `target_modules` names a module: a regex in full, or an entry of a list by its dotted ending.

    Raises:
        PatternError: the regex cannot be matched within the bounds of `patterns.py`.
    """
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return targets == "all-linear" or compiled(targets).matches(module)
    spend(1 + len(targets or ()) // _PER_STEP)
    return any(module == target or module.endswith(f".{target}") for target in targets or ())


def target_parameters(config: Mapping[str, Any], module: str) -> list[str]:
    """Short names of the `nn.Parameter`s of a module that `target_parameters` can mean, innermost wrapper first.

    PEFT wraps the parameters of one module one around the other in the order in which the module registers them. The
    file does not say that order; in every family it is gate and up before down.

    Example:
        >>> target_parameters({"target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}, "mlp.experts")
        ['gate_up_proj', 'down_proj']
    """
    found: dict[str, int] = {}  # short name -> components of the entry that matched
    for entry in config.get("target_parameters") or ():
        short = entry.rpartition(".")[2]
        name = f"{module}.{short}"
        if name == entry or name.endswith(f".{entry}"):
            found[short] = max(found.get(short, 0), entry.count("."))
    most = max(found.values(), default=0)
    return sorted((short for short, size in found.items() if size == most), key=lambda s: (place(s), s))


def place(parameter: str) -> int:
    """Where a parameter stands among those of its module: 1 for a down projection, 0 for what comes before it."""
    return int("down" in parameter or parameter in ("w2", "fc2", "wo", "output_linear"))
