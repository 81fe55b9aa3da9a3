"""A stranger's configuration made fit to build something of it: what runs, fetches or multiplies is taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Fields by which a configuration chooses code: of its own, of a kernel's package, of a backbone that is downloaded.
_RUNS = re.compile(
    r"_?(attn|experts)_implementation(_\w+)?|auto_map|quantization_config|compression_config|use_kernels?|kernel_config"
    r"|custom_pipelines|trust_remote_code|torchscript|_name_or_path|name_or_path|_commit_hash"
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
    return _stripped(config)


def _stripped(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _stripped(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if _RUNS.fullmatch(key) is None
    }


def _largest(config: Mapping[str, Any], names: re.Pattern[str]) -> int:
    found = 0
    for key, value in config.items():
        if isinstance(value, Mapping):
            found = max(found, _largest(value, names))
        elif isinstance(value, int) and names.fullmatch(key):
            found = max(found, value)
    return found
