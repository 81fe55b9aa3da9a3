"""A merged adapter as an adapter to be merged, converted, compressed or baked, without a file between."""

from __future__ import annotations

from samerge.adapters import AdaptedModule, Adapter
from samerge.adapters.model import MEMORY, at_hand
from samerge.errors import AdapterError
from samerge.merging.merged_adapter import MergedAdapter


def as_adapter(merged: MergedAdapter, name: str) -> Adapter:
    """A merged adapter as one that was read.

    Args:
        merged: it.
        name: what to call it.

    Raises:
        AdapterError: it carries more than factors.
    """
    if merged.extras or merged.companions:
        what = min(merged.extras, default=None) or merged.companions[0].name
        raise AdapterError(
            f"taking the merged adapter {name!r} from memory: it has {what!r} beside its factors; save it, and give "
            f"the folder in its place"
        )
    return Adapter(
        name,
        f"{MEMORY}{name}",
        dict(merged.settings),
        {
            module: AdaptedModule(merged.layouts[module], one.rank, one.shape, one.A.dtype, at_hand(one))
            for module, one in sorted(merged.factors.items())
        },
        format=merged.format,
        metadata=merged.metadata,
    )
