"""What merging with many processes costs, by counting: operations, bytes read, bytes exchanged, memory.

    python benchmarks/traffic.py     # checks the counts of bytes on a small model, writes docs/distributed.md's table

No clock is involved: these are counts from shapes. The counts of exchanged bytes are checked against the bytes that two
processes hand to `all_reduce` and `broadcast` in a real merge of a small model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tables
from processes import measured
from shapes import SHAPES, Shape, write_adapter, write_base

DOC = tables.DOCS / "distributed.md"
LARGE = (
    Shape("70B (Llama-3.1)", 8192, 28672, 80, 64, 8, 128256),
    Shape("405B (Llama-3.1)", 16384, 53248, 126, 128, 8, 128256),
)


def flow_bytes(shape: Shape, experts: int) -> int:
    """Bytes of the flows that one iteration sums: every weight's output forwards, its input backwards.

    With each goes one number, whether a process failed.
    """
    return sum((sum(size) * experts + 2) * 4 for size in shape.projections().values()) * shape.layers


def gamma_bytes(shape: Shape, experts: int, rank: int) -> int:
    """Bytes of the gammas that one iteration sums, in float64."""
    return len(shape.projections()) * shape.layers * experts * rank * 8


def weights(shape: Shape) -> int:
    """Weights in the graph."""
    return sum(out * into for out, into in shape.projections().values()) * shape.layers


def factor_bytes(shape: Shape, experts: int, rank: int) -> int:
    """Bytes of all adapters in float32: what all processes together hold at the start."""
    return sum(out + into for out, into in shape.projections().values()) * shape.layers * rank * experts * 4


def passing_bytes(shape: Shape, experts: int, rank: int) -> int:
    """Bytes of all adapters' factors at the two largest weights: the one that is worked on, and the next."""
    return 2 * max(out + into for out, into in shape.projections().values()) * rank * experts * 4


def check() -> dict[str, tuple[int, int]]:
    """Bytes that one iteration of a real merge hands to each collective, counted and by formula."""
    shape, count, rank = SHAPES["llama-tiny"], 3, 16
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(shape, Path(folder))
        adapters = [write_adapter(shape, Path(folder), i, base, rank) for i in range(count)]
        counted = measured(base, adapters, 2, iterations=1)[0]
    merged = factor_bytes(shape, 1, rank)  # what the others get in the end
    return {
        "all_reduce": (int(counted["all_reduce"]), flow_bytes(shape, count) + gamma_bytes(shape, count, rank)),
        "broadcast": (int(counted["broadcast"]), 2 * factor_bytes(shape, count, rank) + merged),
    }


def table() -> str:
    rows = [
        "| base | adapters | processes | operations an iteration | read from the base by each process, an iteration "
        "| handed to all_reduce, an iteration | factors received, first iteration | factors held by each process |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in LARGE:
        for processes in (8, 16, 64):
            experts, rank = 64, 16
            operations = weights(shape) * experts * (6 * rank + 4)
            exchanged = flow_bytes(shape, experts) + gamma_bytes(shape, experts, rank)
            held = factor_bytes(shape, experts, rank) / processes + passing_bytes(shape, experts, rank)
            rows.append(
                f"| {shape.name} | {experts} | {processes} | {operations / 1e15:.1f} P | "
                f"{2 * 2 * weights(shape) / processes / 1e9:.1f} GB | {exchanged / 1e9:.1f} GB | "
                f"{2 * factor_bytes(shape, experts, rank) * (processes - 1) / processes / 1e9:.0f} GB | "
                f"{held / 1e9:.1f} GB |"
            )
    return "\n".join(rows)


def main() -> None:
    for name, (counted, formula) in check().items():
        print(f"bytes handed to {name} in one iteration of a small merge: counted {counted}, by formula {formula}")
        if counted != formula:
            raise SystemExit("the formula is wrong")
    tables.write(DOC, "traffic.py", table())


if __name__ == "__main__":
    main()
