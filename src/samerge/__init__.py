"""samerge: merge several PEFT LoRA adapters of one base model into one, from the weights alone.

`import samerge` is light: torch is imported when the first name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samerge.errors import (
    AdapterError,
    BaseModelError,
    DistributedError,
    GraphError,
    HubError,
    OptionError,
    OutputExistsError,
    SamergeError,
    TuningError,
)
from samerge.version import __version__

if TYPE_CHECKING:
    from samerge.api import merge
    from samerge.comparison import Comparison, compare
    from samerge.conversion.compressing import compress_adapter
    from samerge.conversion.extracting import extract_adapter
    from samerge.factors import LoraFactors
    from samerge.full.api import merge_full
    from samerge.full.model import MergedModel
    from samerge.graph import FlowGraph, Gather, Weight
    from samerge.live import add_weighted_adapter
    from samerge.merged import MergedAdapter
    from samerge.methods import methods
    from samerge.report import Report
    from samerge.tuning import TuneResult, TuneTrial, tune

_LAZY = {
    "Comparison": "samerge.comparison",
    "FlowGraph": "samerge.graph",
    "Gather": "samerge.graph",
    "LoraFactors": "samerge.factors",
    "MergedAdapter": "samerge.merged",
    "MergedModel": "samerge.full.model",
    "Report": "samerge.report",
    "TuneResult": "samerge.tuning.result",
    "TuneTrial": "samerge.tuning.result",
    "Weight": "samerge.graph",
    "add_weighted_adapter": "samerge.live",
    "compare": "samerge.comparison",
    "compress_adapter": "samerge.conversion.compressing",
    "extract_adapter": "samerge.conversion.extracting",
    "merge": "samerge.api",
    "merge_full": "samerge.full.api",
    "methods": "samerge.methods",
    "tune": "samerge.tuning.search",
}

__all__ = [
    "AdapterError",
    "BaseModelError",
    "Comparison",
    "DistributedError",
    "FlowGraph",
    "Gather",
    "GraphError",
    "HubError",
    "LoraFactors",
    "MergedAdapter",
    "MergedModel",
    "OptionError",
    "OutputExistsError",
    "Report",
    "SamergeError",
    "TuneResult",
    "TuneTrial",
    "TuningError",
    "Weight",
    "__version__",
    "add_weighted_adapter",
    "compare",
    "compress_adapter",
    "extract_adapter",
    "merge",
    "merge_full",
    "methods",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'samerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
