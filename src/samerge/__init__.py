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
    from samerge.full.bake import bake
    from samerge.full.merge_full import merge_full
    from samerge.full.merged_model import MergedModel
    from samerge.graph import FlowGraph, Gather, Weight
    from samerge.linalg.factors import LoraFactors
    from samerge.merging.comparison import Comparison, compare
    from samerge.merging.conversion.compressing import compress_adapter
    from samerge.merging.conversion.converting import convert_adapter
    from samerge.merging.conversion.extracting import extract_adapter
    from samerge.merging.live import add_weighted_adapter
    from samerge.merging.merge_adapters import merge
    from samerge.merging.merged_adapter import MergedAdapter
    from samerge.merging.peft_method import register_with_peft, unregister_from_peft
    from samerge.merging.tuning import TuneResult, TuneTrial, tune
    from samerge.methods.method import Method
    from samerge.methods.registry import available_methods, register_method
    from samerge.report.report import Report

_LAZY = {
    "Comparison": "samerge.merging.comparison",
    "FlowGraph": "samerge.graph",
    "Gather": "samerge.graph",
    "LoraFactors": "samerge.linalg.factors",
    "MergedAdapter": "samerge.merging.merged_adapter",
    "MergedModel": "samerge.full.merged_model",
    "Report": "samerge.report.report",
    "TuneResult": "samerge.merging.tuning.result",
    "TuneTrial": "samerge.merging.tuning.result",
    "Weight": "samerge.graph",
    "add_weighted_adapter": "samerge.merging.live",
    "bake": "samerge.full.bake",
    "compare": "samerge.merging.comparison",
    "compress_adapter": "samerge.merging.conversion.compressing",
    "convert_adapter": "samerge.merging.conversion.converting",
    "extract_adapter": "samerge.merging.conversion.extracting",
    "merge": "samerge.merging.merge_adapters",
    "merge_full": "samerge.full.merge_full",
    "Method": "samerge.methods.method",
    "available_methods": "samerge.methods.registry",
    "register_method": "samerge.methods.registry",
    "register_with_peft": "samerge.merging.peft_method",
    "tune": "samerge.merging.tuning.search",
    "unregister_from_peft": "samerge.merging.peft_method",
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
    "Method",
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
    "available_methods",
    "bake",
    "compare",
    "compress_adapter",
    "convert_adapter",
    "extract_adapter",
    "merge",
    "merge_full",
    "register_method",
    "register_with_peft",
    "tune",
    "unregister_from_peft",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'samerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
