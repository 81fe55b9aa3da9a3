"""Adapters as they are found: a PEFT folder, or an adapter of a live `PeftModel`.

What counts is the tensors that exist: `target_modules` may be a list, a regex or "all-linear" and need not be resolved.
"""

from samerge.adapters.config import pattern_value, scaling
from samerge.adapters.files import read_adapter
from samerge.adapters.live_adapter import live_adapter
from samerge.adapters.model import AdaptedModule, Adapter, Extras, TokenRows, widest
from samerge.weights.hub import CONFIG_NAME, WEIGHTS_NAME

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "AdaptedModule",
    "Adapter",
    "Extras",
    "TokenRows",
    "live_adapter",
    "pattern_value",
    "read_adapter",
    "scaling",
    "widest",
]
