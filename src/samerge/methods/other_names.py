"""Names that PEFT and mergekit give to methods of the same meaning, and the options that such a name implies.

PEFT's types come in pairs: `x` prunes and adds the A's and the B's apart, which mixes adapters in cross terms; `x_svd`
works on the dense updates and truncates. Both names stand here for the dense meaning, streamed and truncated. PEFT's
thresholds are by layer; `ties` alone is samerge's own method, whose threshold is over the whole adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

#: The other name -> samerge's method and the options that the name implies.
OTHER_NAMES: Mapping[str, tuple[str, Mapping[str, float | str]]] = {
    "cat": ("linear", {}),
    "task_arithmetic": ("linear", {}),
    "task-arithmetic": ("linear", {}),
    "ties_svd": ("ties", {"trim": "layer"}),
    "dare_linear": ("dare", {}),
    "dare_linear_svd": ("dare", {}),
    "dare_ties": ("dare-ties", {}),
    "dare_ties_svd": ("dare-ties", {}),
    "magnitude_prune": ("magnitude-prune", {}),
    "magnitude_prune_svd": ("magnitude-prune", {}),
    "della_linear": ("della", {"elect": "false"}),
    "knots_ties": ("knots-ties", {}),
    "core_ties": ("core-ties", {}),
    "iso_c": ("iso-c", {}),
    "lora_lego": ("lora-lego", {}),
}
