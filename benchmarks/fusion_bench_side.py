"""FusionBench's merge of adapters as dense updates. Runs in an environment that has FusionBench, and not samerge.

    path/to/python benchmarks/fusion_bench_side.py tsv ADAPTER ADAPTER ...

The updates are made dense first, which is not counted: FusionBench merges whole weights.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from memory import peak_mib
from safetensors.torch import load_file


def dense(adapter: Path) -> dict[str, torch.Tensor]:
    """s B A of every module."""
    state = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    stems = [name.removesuffix("lora_A.weight") for name in state if name.endswith("lora_A.weight")]
    return {f"{stem}weight": scale * state[f"{stem}lora_B.weight"] @ state[f"{stem}lora_A.weight"] for stem in stems}


def main() -> None:
    """Merge, and print what it took."""
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    merge = {"tsv": compute_and_sum_svd_mem_reduction}[sys.argv[1]]
    vectors = [dense(Path(folder)) for folder in sys.argv[2:]]
    wall, cpu = time.perf_counter(), time.process_time()
    merge(vectors, accelerator="cpu")
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "peak_rss_mib": peak_mib(),
            }
        )
    )


if __name__ == "__main__":
    main()
