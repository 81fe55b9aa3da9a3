"""An adapter of single experts, as of transformers 4, as one of the stacked parameters that transformers 5 has.

| the modules of one expert | the stack's, for that expert |
|---|---|
| `w1` or `gate_proj`, A1 (r, in), B1 (I, r), and `w3` or `up_proj` | `gate_up_proj`: [A1; A3], diag(B1, B3) |
| `w2` or `down_proj` | `down_proj`: the same |

Exact: the update of the stack is that of its parts, one under the other. Experts that the adapter lacks get zeros, as
PEFT stores a stack whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from samerge.adapters import AdaptedModule, Adapter, widest
from samerge.adapters.config import place
from samerge.adapters.layouts import Layout
from samerge.merging.alignment.fused import STACKS, piece_of, stack_owner
from samerge.merging.alignment.matching import Names
from samerge.merging.alignment.projections import stacked_rows
from samerge.weights import WeightSource


def stacked_experts(adapter: Adapter, source: WeightSource) -> Adapter:
    """The adapter with its single experts as parts of the base's stacks, where the base has stacks and no experts.

    Args:
        adapter: the adapter, under any names.
        source: the base.
    """
    pieces: dict[str, tuple[str, int, str]] = {}
    for module, one in adapter.modules.items():
        found = piece_of(module)
        if found is not None and one.bias is None and one.magnitude is None:
            pieces[module] = found
    if not pieces or not any(len(shape) == 3 for shape in source.shapes.values()):
        return adapter
    names = Names(tensor for tensor, shape in source.shapes.items() if len(shape) >= 2)
    stacks: dict[str, dict[int, dict[str, AdaptedModule]]] = {}  # stack -> expert -> short -> module
    kept = dict(adapter.modules)
    for module, (owner, expert, short) in pieces.items():
        stack = next(stack for stack, choices in STACKS.items() if any(short in choice for choice in choices))
        tensors = names.find(f"{stack_owner(owner)}.{stack}")
        if len(tensors) == 1 and len(source.shapes[tensors[0]]) == 3 and not names.find(module):
            stacks.setdefault(tensors[0], {}).setdefault(expert, {})[short] = kept.pop(module)
    for stack, experts in stacks.items():
        count, rows, columns = source.shapes[stack]
        kept.update(_stacked(stack, experts, count, (rows, columns)))
    return replace(adapter, modules=dict(sorted(kept.items()))) if stacks else adapter


def _stacked(
    stack: str, experts: Mapping[int, Mapping[str, AdaptedModule]], count: int, shape: tuple[int, int]
) -> dict[str, AdaptedModule]:
    short = stack.rpartition(".")[2]
    shorts = {name for parts in experts.values() for name in parts}
    order = next(choice for choice in STACKS[short] if shorts <= set(choice))
    rank = max(sum(part.rank for part in parts.values()) for parts in experts.values())
    dtype = widest(part.dtype for parts in experts.values() for part in parts.values())
    layout = Layout("parameter", experts=count, place=place(short))
    rows = shape[0] // len(order)
    return {
        f"{stack}[{expert}]": AdaptedModule(
            layout,
            rank,
            shape,
            dtype,
            partial(stacked_rows, [(experts.get(expert, {}).get(name), rows) for name in order], rank, shape[1]),
        )
        for expert in range(count)
    }
