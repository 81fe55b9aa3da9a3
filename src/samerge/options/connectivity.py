"""`connectivity` and `residual`: the flow graph of methods that read the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samerge.errors import OptionError
from samerge.options.kinds import Kind

if TYPE_CHECKING:
    from samerge.graph import FlowGraph


def connectivity() -> Kind:
    """Either "flow" or "local", or a flow graph of one's own."""

    def read(name: str, value: Any) -> str | FlowGraph:
        from samerge.graph import FlowGraph

        if not isinstance(value, FlowGraph) and value not in ("flow", "local"):
            raise OptionError(f"{name}={value!r} is not known; choose flow, local, or give a samerge.FlowGraph")
        return value if isinstance(value, FlowGraph) else str(value)

    words = ("flow", "local")
    return Kind(read, "Literal['flow', 'local'] | FlowGraph", "flow|local", words, schema={"enum": [*words]})


HELP = (
    "How the layers feed one another: flow, through the model family's graph; local, every layer by itself, for any "
    "architecture; in Python also a graph of your own."
)
