"""What merging with many processes costs, by counting: operations, bytes read, bytes exchanged, memory.

    python benchmarks/traffic.py     # checks the count of bytes on a small model, writes docs/distributed.md's table

No clock is involved: these are counts from shapes. The count of exchanged bytes is checked against the bytes that a
real merge of a small model hands to `all_reduce`.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from unittest import mock

from shapes import SHAPES, Shape, write_adapter, write_base

import samerge
from samerge.distributed import Group

DOC = Path(__file__).parent.parent / "docs" / "distributed.md"
BEGIN, END = "<!-- table: benchmarks/traffic.py -->", "<!-- end of table -->"
LARGE = (
    Shape("70B (Llama-3.1)", 8192, 28672, 80, 64, 8, 128256),
    Shape("405B (Llama-3.1)", 16384, 53248, 126, 128, 8, 128256),
)


def flow_bytes(shape: Shape, experts: int) -> int:
    """Bytes of the flows that one iteration sums: every weight's output forwards, its input backwards."""
    return sum(sum(size) for size in shape.projections().values()) * shape.layers * experts * 4


def weights(shape: Shape) -> int:
    """Weights in the graph."""
    return sum(out * into for out, into in shape.projections().values()) * shape.layers


def factor_bytes(shape: Shape, experts: int, rank: int) -> int:
    """Bytes of all adapters in float32: what every process holds at the start."""
    return sum(out + into for out, into in shape.projections().values()) * shape.layers * rank * experts * 4


def check() -> tuple[int, int]:
    """Bytes that one iteration of a real merge hands to `all_reduce`, counted and by formula, without the gammas."""
    shape, count, seen = SHAPES["llama-tiny"], 3, []

    def spy(self: Group, tensor):
        seen.append(tensor.numel() * tensor.element_size())
        return tensor

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Group, "sum", spy), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = write_base(shape, Path(folder))
        adapters = [write_adapter(shape, Path(folder), i, base) for i in range(count)]
        samerge.merge(base, adapters, iterations=1, progress=False)
    return sum(seen), flow_bytes(shape, count)


def table() -> str:
    rows = [
        "| base | adapters | processes | operations an iteration | read from the base by each process, an iteration "
        "| handed to all_reduce, an iteration | adapters in memory, each process |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in LARGE:
        for processes in (8, 16, 64):
            experts, rank = 64, 16
            operations = weights(shape) * experts * (6 * rank + 4)
            rows.append(
                f"| {shape.name} | {experts} | {processes} | {operations / 1e15:.1f} P | "
                f"{2 * 2 * weights(shape) / processes / 1e9:.1f} GB | {flow_bytes(shape, experts) / 1e9:.1f} GB | "
                f"{factor_bytes(shape, experts, rank) / 1e9:.0f} GB |"
            )
    return "\n".join(rows)


def main() -> None:
    counted, formula = check()
    print(f"bytes handed to all_reduce in one iteration of a small merge: counted {counted}, by formula {formula}")
    if counted != formula:
        raise SystemExit("the formula is wrong")
    text = DOC.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOC.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
