"""Several merges of the same adapters and base, which are opened and read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from samerge.adapters import Adapter
from samerge.merging.inputs import AdapterLike, BaseLike, open_adapters, open_base
from samerge.merging.merge_adapters import Shared, merge_opened
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import Plan
from samerge.parallel.progress import Progress


class SameInputs:
    """Adapters of one base, to be merged in several ways.

    Args:
        base: as for `merge`.
        adapters: as for `merge`.

    Raises:
        SamergeError: as for `merge`, where they cannot be read.
    """

    def __init__(
        self,
        base: BaseLike | None,
        adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    ) -> None:
        self.base = base
        self.adapters = [_read_once(adapter) for adapter in open_adapters(base, adapters)]
        self.source = open_base(base, required=False)
        self._shared = Shared()

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names, in order."""
        return tuple(adapter.name for adapter in self.adapters)

    def merged(self, planned: Plan, bars: Progress) -> MergedAdapter:
        """The merge that a plan asks for; the same as `merge` of all this alone.

        Args:
            planned: what to do.
            bars: where to report progress.
        """
        return merge_opened(self.adapters, self.source, self.base, planned, bars, self._shared)


def _read_once(adapter: Adapter) -> Adapter:
    """The adapter with factors that are kept once they have been read."""
    return replace(
        adapter,
        modules={name: replace(module, load=cache(module.load)) for name, module in adapter.modules.items()},
    )
