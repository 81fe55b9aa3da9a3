"""PEFT's combination types under their own names, where samerge has a method of the same meaning.

PEFT's types come in pairs: `x` prunes and adds the A's and the B's apart, which mixes adapters in cross terms; `x_svd`
works on the dense updates and truncates. Both names stand here for the dense meaning, streamed and truncated to
`svd_rank`, the largest source rank by default. Thresholds are by layer, as PEFT has them. `ties` alone is samerge's own
method of that name, whose threshold is over the whole adapter; `ties_svd` is the one by layer.
"""

from __future__ import annotations

from collections.abc import Mapping

#: PEFT's name -> samerge's method and what it takes.
PEFT_NAMES: Mapping[str, tuple[str, Mapping[str, float | str]]] = {
    "ties_svd": ("ties", {"trim": "layer"}),
    "dare_linear": ("dare", {}),
    "dare_linear_svd": ("dare", {}),
    "dare_ties": ("dare-ties", {}),
    "dare_ties_svd": ("dare-ties", {}),
    "magnitude_prune": ("magnitude-prune", {}),
    "magnitude_prune_svd": ("magnitude-prune", {}),
}


def method_of(
    combination_type: str | None,
    aggregation: str | None,
    majority_sign_method: str,
    method_options: Mapping[str, float | str] | None,
) -> tuple[str | None, dict[str, float | str]]:
    """The method that a combination type means, with the aggregation's own options; explicit options win.

    Raises:
        OptionError: there is no such type.

    Example:
        >>> method_of("dare_ties_svd", None, "frequency", {"seed": 1})
        ('dare-ties', {'majority_sign_method': 'frequency', 'seed': 1})
    """
    from samerge.methods import entry
    from samerge.methods.parameters import defaults

    method: str | None = None
    options: Mapping[str, float | str] = {}
    if combination_type is not None:
        method, options = PEFT_NAMES.get(combination_type, (combination_type, {}))
    named = entry(method) if method is not None else None
    if aggregation not in (None, "sum") and (named is None or named.selection != "none"):
        named = entry(str(aggregation))
    kind = None if named is None else named.parameters
    votes = kind is not None and "majority_sign_method" in defaults(kind)
    elected: dict[str, float | str] = {"majority_sign_method": majority_sign_method} if votes else {}
    return method, {**options, **elected, **(method_options or {})}
