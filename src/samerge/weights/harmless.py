"""A stranger's configuration made fit to build something of it, or to be passed on: what it would run is taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Fields that name code to run: of its own, or of a kernel's package.
_CODE = re.compile(
    r"_?(attn|experts)_implementation(_\w+)?|auto_map|use_kernels?|kernel_config|custom_pipelines|trust_remote_code"
)
#: Fields by which something else would be built, or fetched, than what the tensors are.
_OTHER = re.compile(
    r"quantization_config|compression_config|torchscript|_name_or_path|name_or_path|_commit_hash"
    r"|use_pretrained_backbone|use_timm_backbone|backbone|backbone_kwargs"
)
#: Fields that say how often something is repeated, and how many layers there are.
_COUNTS, _LAYERS = re.compile(r"(num|n)_\w+|\w*experts?|\w*repeats?"), re.compile(r"\w*layers?|\w*depths?")
#: A count that some model has.
_MOST = 100_000
#: How many layers more than tensors a configuration may speak of: such numbers are limits of windows, too
#: (`max_window_layers` of Qwen2-VL is 80, however few layers there are).
_SPARE_LAYERS = 500


def harmless(config: Mapping[str, Any], tensors: int) -> dict[str, Any] | None:
    """A configuration, at every depth, without the fields that choose code, and bounded.

    Args:
        config: the configuration.
        tensors: how many the checkpoint has. A count of layers, experts or heads that is larger, and larger than any
            model's, does not belong to it, and building it could take all memory.

    Returns:
        None where it counts more than that.

    Example:
        >>> harmless({"n_layer": 2, "attn_implementation": "org/kernel", "text_config": {"auto_map": {}}}, 10)
        {'n_layer': 2, 'text_config': {}}
        >>> harmless({"num_hidden_layers": 10**9}, 10) is None
        True
    """
    if _largest(config, _COUNTS) > max(tensors, _MOST) or _largest(config, _LAYERS) > tensors + _SPARE_LAYERS:
        return None
    return _without(config, _CODE, _OTHER)


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, at every depth, without the fields that name code for another library to run.

    Example:
        >>> without_code({"n_layer": 2, "text_config": {"auto_map": {}, "attn_implementation": "org/kernel"}})
        {'n_layer': 2, 'text_config': {}}
    """
    return _without(config, _CODE)


def may_name_code(text: bytes) -> bool:
    """Whether a configuration's text has any of those fields, or a word that only looks like one."""
    return re.search(_CODE.pattern.encode(), text) is not None


def _without(config: Mapping[str, Any], *fields: re.Pattern[str]) -> dict[str, Any]:
    return {
        key: _without(value, *fields) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not any(pattern.fullmatch(key) for pattern in fields)
    }


def _largest(config: Mapping[str, Any], names: re.Pattern[str]) -> int:
    found = 0
    for key, value in config.items():
        if isinstance(value, Mapping):
            found = max(found, _largest(value, names))
        elif isinstance(value, int) and names.fullmatch(key):
            found = max(found, value)
    return found
