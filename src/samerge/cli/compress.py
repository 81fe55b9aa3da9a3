"""`samerge compress`: an adapter to a smaller one."""

from __future__ import annotations

from typing import Annotated, Any

from samerge.cli.named_adapter import given_one
from samerge.cli.shared_options import Base, Manner, OneAdapter, OnePositional
from samerge.cli.shrunk import Energy, Rank, deliver, size
from samerge.cli.spread import FromTable
from samerge.cli.target import AdapterTarget
from samerge.options.common import CommonOptions

_DEFAULTS = (("dtype", "the adapter's own"), ("modules_to_save", "kept as they are"), ("dora", "an error if it is one"))


def compress(
    *,
    one: OnePositional = None,
    adapter: OneAdapter = None,
    base: Base = None,
    rank: Rank = None,
    energy: Energy = None,
    options: Annotated[dict[str, Any], FromTable(CommonOptions, ("dtype", "modules_to_save", "dora"), _DEFAULTS)],
    target: AdapterTarget,
    manner: Manner,
) -> None:
    """Bring an adapter to a smaller rank, exactly through its factors: the best approximation in every layer.

    To rank 8, and to the ranks that keep 95 % of every layer's energy:

        samerge compress ./math-lora --rank 8 --out math-r8/

        samerge compress ./math-lora --energy 0.95 --out math-small/

    Without --out it only says what would be lost. The base is read only for trained biases and DoRA; what is trained
    beside the factors is kept unless --modules-to-save drop.
    """
    spec = given_one("compress", one, adapter)
    target.check(sources=[spec.source])
    from samerge.merging.conversion.compressing import compress_adapter

    made = lambda: compress_adapter(  # noqa: E731
        spec.source, base=base, progress=not manner.quiet, **size(rank, energy), **options
    )
    deliver(made, target, manner)
