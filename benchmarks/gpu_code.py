"""Compile the Triton kernel for GPUs that need not be there, and say what each program takes of one.

    python benchmarks/gpu_code.py            # benchmarks/results/gpu_code.json, and from it the table of docs/gpu.md
    python benchmarks/gpu_code.py --all      # more block sizes

Registers, shared memory and spills are what NVIDIA's assembler reports. Instructions are counted in the machine code
of the loop over the experts, for one entry of theta and one expert: with the rate at which a GPU issues instructions
that gives a lower bound of the time, before anything was run. Needs Triton on Linux, no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tables
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from samerge.saliency.kernels.triton_kernel import sweep_kernel
from samerge.saliency.kernels.triton_tiles import PIECES, Blocks, Products

RESULTS = tables.RESULTS / "gpu_code.json"
DOC = tables.DOCS / "gpu.md"
SWEEPS = ("forward", "backward", "backward, (in, out)")
_TYPES = {"starts": "*i32", "experts": "*i32"} | dict.fromkeys(["left", "right", "u", "v", "flows", "gammas"], "*fp32")


@dataclass(frozen=True)
class Code:
    """What was compiled, and what it takes.

    Args:
        registers: for each thread; 255 is the most there is.
        stack: bytes for each thread, of registers spilled.
        shared: bytes for each program.
        tensor_cores: instructions for tensor cores in the loop.
        instructions: in the loop over the experts, for each entry of theta and each expert.
    """

    arch: int
    products: str
    sweep: str
    theta: str
    rank: int
    rows: int
    columns: int
    warps: int
    stages: int
    registers: int
    stack: int
    shared: int
    tensor_cores: int
    instructions: float


def build(
    arch: int,
    products: Products = "ieee",
    sweep: str = "backward",
    theta: str = "bf16",
    rank: int = 16,
    blocks: Blocks | None = None,
    one_block: bool = True,
) -> Code:
    """Compile one variant of the kernel down to machine code."""
    blocks = blocks or Blocks()
    # the sum of the backward sweep runs along what lies side by side only where weights are stored (in, out)
    side_by_side = "theta_rows" if sweep == "backward" else "theta_columns"
    constants = {
        side_by_side: 1,
        "SENSE": sweep != "forward",
        "PRODUCTS": products,
        "PIECES": PIECES[products],
        "ONE_BLOCK": one_block,
        "OPERAND": tl.bfloat16,
        "BM": blocks.rows,
        "BN": blocks.columns,
        "BK": rank,
    }
    types = {"theta": "*" + theta, **_TYPES, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in sweep_kernel.arg_names}
    free = {"adapted", "count", "components", "starts", "experts", *constants}  # of which nothing is known
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(sweep_kernel.arg_names) if name not in free
    }
    compiled = triton.compile(
        ASTSource(sweep_kernel, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, machine = _dump("-res-usage", file.name), _dump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    loop = _loop(machine)
    return Code(
        arch,
        products,
        sweep,
        theta,
        rank,
        blocks.rows,
        blocks.columns,
        blocks.warps,
        blocks.stages,
        int(found[1]),
        int(found[2]),
        compiled.metadata.shared,
        sum("HGMMA" in one or "HMMA" in one for one in loop),
        round(len(loop) * blocks.warps * 32 / (blocks.rows * blocks.columns), 1),
    )


def _dump(option: str, file: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, file], check=True, capture_output=True, text=True).stdout


def _loop(machine: str) -> list[str]:
    """The instructions of the longest loop; where ranks take several products, that holds others."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", machine)]
    loops = []
    for at, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            loops.append([other for place, other in lines if int(jump[1], 16) <= place <= at])
    return max(loops, key=len)


def table(found: dict[str, Any]) -> str:
    """The results as docs/gpu.md shows them: of weights stored (out, in)."""
    header = ["GPU", "products", "sweep", "registers", "stack, B", "shared, KiB", "instructions"]
    cells = []
    for item in found["codes"]:
        if item["sweep"] != SWEEPS[2]:
            cells.append([f"sm_{item['arch']}", f"`{item['products']}`", item["sweep"], str(item["registers"])])
            cells[-1] += [str(item["stack"]), f"{item['shared'] / 1024:.0f}", f"{item['instructions']:.1f}"]
    return f"{tables.rows(header, cells)}\n\nTriton {found['versions']['triton']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="more block sizes; nothing is written")
    given = parser.parse_args()
    sizes = [Blocks()]
    if given.all:
        sizes = [Blocks(*size) for size in itertools.product((64, 128), (64, 128), (4, 8), (1, 2, 3))]
    print("| sm | products | sweep | block | warps, stages | registers | spilled B | shared KiB | instructions |")
    print("|---|---|---|---|---|---|---|---|---|")
    codes = []
    for arch, products, sweep, blocks in itertools.product((80, 90), PIECES, SWEEPS, sizes):
        code = build(arch, products, sweep, blocks=blocks)
        codes.append(code)
        print(
            f"| {arch} | {products} | {sweep} | {code.rows} x {code.columns} | {code.warps}, {code.stages} "
            f"| {code.registers} | {code.stack} | {code.shared / 1024:.0f} | {code.instructions} |",
            flush=True,
        )
    if not given.all:
        versions = {"triton": triton.__version__}
        RESULTS.write_text(
            json.dumps({"versions": versions, "codes": [asdict(code) for code in codes]}, indent=1) + "\n"
        )
        tables.write(DOC, "gpu_code.py", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
