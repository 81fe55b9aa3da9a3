"""samerge's methods on PEFT's own `model.add_weighted_adapter`, for code that calls that: where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samerge.merging.live import add_weighted_adapter

#: Combination types that PEFT has: they stay PEFT's.
_PEFTS = frozenset(
    (
        *("svd", "linear", "cat", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd", "dare_linear_svd"),
        *("magnitude_prune", "magnitude_prune_svd"),
    )
)
_NAME = "add_weighted_adapter"


def register_with_peft() -> None:
    """Let PEFT's `model.add_weighted_adapter(..., combination_type="saliency")` know samerge's methods.

    Types that PEFT has ("svd", "linear", "cat", "ties", "ties_svd", "dare_*", "magnitude_prune*") stay PEFT's own, also
    where samerge has a method of the same name; `samerge.add_weighted_adapter` has those. Options of a method are
    keywords, as there. Calling it twice is calling it once; `samerge.unregister_from_peft()` undoes it.

    Example:
        ```python
        samerge.register_with_peft()
        model.add_weighted_adapter(["math", "code"], [1.0, 0.8], "merged", combination_type="saliency", rank=16)
        ```
    """
    from peft import PeftModel

    setattr(PeftModel, _NAME, _either)


def unregister_from_peft() -> None:
    """Take back what `register_with_peft` did; nothing where it was not called."""
    from peft import PeftModel

    if PeftModel.__dict__.get(_NAME) is _either:
        delattr(PeftModel, _NAME)


def _either(
    self: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    *arguments: Any,
    **options: Any,
) -> None:
    """PEFT's method where the type is PEFT's, samerge's otherwise; PEFT's own documentation holds for the first."""
    if combination_type in _PEFTS:
        own = getattr(self.base_model, _NAME)  # where PEFT's model would have looked
        return own(adapters, weights, adapter_name, combination_type, *arguments, **options)  # type: ignore[no-any-return]
    add_weighted_adapter(self, adapters, weights, adapter_name, combination_type, *arguments, **options)
    return None
