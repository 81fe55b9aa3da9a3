"""One scoring iteration of a large shape on a GPU: seconds by kernel, beside what reading the base alone would take.

    python benchmarks/gpu.py                 # Llama-3.1-8B's shape in bfloat16, 8 adapters of rank 16
    python benchmarks/gpu.py --tune          # first: which block sizes are fastest on the largest weight
    python benchmarks/gpu.py --small         # a toy, on any machine: shows that the script runs, measures nothing

Needs a CUDA GPU with memory for the base (14 GB in bfloat16 at this shape, some 20 GB with all else, by count) and
Triton. The base is random and lies on the device. The floor is the base's bytes, read twice, over the rate at which a
copy of 1 GiB on the device reads and writes in the same run. Every kernel's gammas are compared with plain torch's, and
so is what half of the components would be kept by them. Results go to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, Shape

from samerge.graph import FlowGraph, build_graph
from samerge.linalg.factors import LoraFactors
from samerge.saliency.connectivity import Connectivity, connectivity
from samerge.saliency.scores import top
from samerge.weights.stored import InMemory, StoredSource

RESULTS = Path(__file__).parent / "results" / "gpu.json"
TOY = Shape("toy", 64, 96, 1, 4, 2, 100)
KERNELS = ("torch", "triton", "triton-tf32x3", "triton-bf16x3")


def base_of(shape: Shape, device: torch.device) -> StoredSource:
    """A random base in bfloat16, on the device."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {
        f"model.layers.{layer}.{name}.weight": InMemory(
            torch.randn(*size, generator=generator, device=device, dtype=torch.bfloat16) * 0.02
        )
        for layer in range(shape.layers)
        for name, size in shape.projections().items()
    }
    vocabulary = torch.empty(shape.vocabulary, shape.hidden, dtype=torch.bfloat16, device="meta")
    return StoredSource(shape.name, shape.config(), {"model.embed_tokens.weight": InMemory(vocabulary), **weights})


def experts_of(graph: FlowGraph, source: StoredSource, count: int, rank: int, device: torch.device) -> list[Any]:
    """Random adapters on every weight of the graph."""
    generator = torch.Generator(device).manual_seed(1)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device)

    return [
        {
            tensor: LoraFactors(
                draw(rank, source.shapes[tensor][1]) / source.shapes[tensor][1] ** 0.5,
                draw(source.shapes[tensor][0], rank) * 0.02,
            )
            for tensor in graph.tensors
        }
        for _ in range(count)
    ]


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The shortest of several runs, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second, read and written by a copy on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, 10)


def difference(found: Connectivity, expected: Connectivity) -> dict[str, Any]:
    """How far two scorings are apart, and how many components only one of them has among a layer's upper half."""
    worst, other, total = 0.0, 0, 0
    for ours, theirs in zip(found.gamma, expected.gamma, strict=True):
        for key, one in theirs.items():
            values = ours[key].values.double() * math.exp(ours[key].log - one.log)
            worst = max(worst, float((values - one.values).abs().max() / one.values.abs().max()))
            half = len(values) // 2
            kept = [set(top(each.abs(), half).tolist()) for each in (values, one.values.double())]
            other, total = other + len(kept[0] - kept[1]), total + half
    logs = zip(found.log_connectivity, expected.log_connectivity, strict=True)
    return {
        "largest_gamma_error": worst,
        "kept_otherwise": other,
        "kept": total,
        "log_R_error": max(abs(a - b) for a, b in logs),
    }


def tune(shape: Shape, count: int, rank: int, device: torch.device) -> list[dict[str, Any]]:
    """Milliseconds of both sweeps of the largest weight, for several block sizes."""
    from samerge.saliency.kernels.triton_tiles import PIECES, Blocks, pack, sweep

    out, into = max(shape.projections().values(), key=math.prod)
    theta = torch.randn(out, into, device=device).bfloat16()
    factors = [LoraFactors(torch.randn(rank, into, device=device), torch.randn(out, rank, device=device))] * count
    packed = pack(factors, False, device)
    u, v = torch.rand(count, out, device=device), torch.rand(count, into, device=device)
    found = []
    for products in PIECES:
        for blocks in (
            Blocks(rows, columns, warps, stages)
            for rows in (64, 128)
            for columns in (64, 128)
            for warps in (4, 8)
            for stages in (1, 2, 3)
        ):
            times = [
                1e3
                * seconds(
                    lambda f=flows, b=blocks, p=products: sweep(theta, 0, packed, f, f[0] is None, p, b), device, 5
                )
                for flows in ((None, v), (u, v))
            ]
            found.append({"products": products, **vars(blocks), "forward_ms": times[0], "backward_ms": times[1]})
            print(products, blocks, f"forward {times[0]:.3f} ms, backward {times[1]:.3f} ms", flush=True)
    return found


def measure(shape: Shape, count: int, rank: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """One iteration with every kernel that runs here."""
    source = base_of(shape, device)
    graph = build_graph(source.config, source.shapes)
    experts = experts_of(graph, source, count, rank, device)
    size = sum(math.prod(source.shapes[tensor]) for tensor in graph.tensors)
    rate = bandwidth(device, 1 << (30 if device.type == "cuda" else 20))
    floor = 2 * 2 * size / rate
    record: dict[str, Any] = {
        "shape": shape.name,
        "weights_in_graph": size,
        "adapters": count,
        "rank": rank,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "copy_bytes_per_second": round(rate),
        "floor_seconds": floor,
        "kernels": {},
    }
    runs = find_spec("triton") and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
    expected: Connectivity | None = None
    for kernel in KERNELS if runs else KERNELS[:1]:
        os.environ["SAMERGE_KERNEL"] = kernel
        found = connectivity(graph, source, experts, device=device)
        assert found.kernel == kernel, found.kernel
        expected = expected or found
        took = seconds(lambda: connectivity(graph, source, experts, device=device), device, repeats)
        record["kernels"][kernel] = {"seconds": took, "over_floor": took / floor, **difference(found, expected)}
        print(kernel, json.dumps(record["kernels"][kernel]), flush=True)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-8b", choices=sorted(SHAPES))
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tune", action="store_true", help="several block sizes on the largest weight, too")
    parser.add_argument("--small", action="store_true", help="a toy shape, on the CPU where there is no GPU")
    parser.add_argument("--out", type=Path, help="where the results go; with --small nowhere by default")
    given = parser.parse_args()
    there = torch.cuda.is_available()
    if not there and not given.small:
        print(
            "benchmarks/gpu.py needs a CUDA GPU with 20 GB of memory, a torch built for CUDA, and Triton; "
            "torch.cuda.is_available() is False here (--small runs a toy on the CPU)",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda" if there else "cpu")
    shape, repeats = (TOY, 1) if given.small else (SHAPES[given.shape], given.repeats)
    count = min(given.adapters, 2) if given.small else given.adapters
    record = {"blocks": tune(shape, count, given.rank, device)} if given.tune else {}
    record = {**measure(shape, count, given.rank, device, repeats), **record}
    out = given.out or (None if given.small else RESULTS)
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
