"""Several processes give what one gives, the same on all of them, and each holds its part."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import same_record, same_updates
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from samerge.parallel.processes import Group

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "rounds": {"rank": 3, "iterations": 3},
    "paper": {"method": "paper", "density": 0.4, "iterations": 2},
    "native": {
        "method": "paper",
        "density": 0.5,
        "iterations": 2,
        "basis": "native",
        "balance": "norm",
    },
    "local": {"rank": 2, "iterations": 2, "connectivity": "local"},
    "even": {"method": "even", "rank": 3, "scaling": "auto"},
    "ties": {"method": "ties", "rank": 3},
    "sum": {"method": "linear", "scaling": 0.5},
    "weights": {"method": "svd", "rank": 3, "weights": "nan", "balance": "norm"},
    "lego": {"method": "lora-lego", "rank": 3},
    "zero": {"rank": 3, "iterations": 2, "weights": [1.0, 0.0]},
    "dora": {"rank": 3, "iterations": 2, "dora": "exact"},
    "calibrated": {"rank": 3, "calibration": "random"},
}

#: Runs every way, and says what came out and how many bytes of factors were alive at most while it swept.
WORKER = """
import sys, torch, json, weakref
import torch.distributed as dist
import samerge
from safetensors.torch import save_file
from samerge.parallel.processes import Group, join
from samerge.linalg.factors import LoraFactors
torch.set_num_threads(1)
folder, ways = sys.argv[1], json.loads(sys.argv[2])
group = join()
made, peak = [], 0
noting, summing = LoraFactors.__post_init__, Group.summed

def born(self):
    noting(self)
    made.append(weakref.ref(self))

def summed(self, *arguments):
    global peak, made
    made = [ref for ref in made if ref() is not None]
    tensors = [tensor for ref in made if (f := ref()) is not None for tensor in (f.A, f.B) if not tensor.is_meta]
    peak = max(peak, sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
    return summing(self, *arguments)

LoraFactors.__post_init__, Group.summed = born, summed
for name, options in ways.items():
    adapters = {"a": f"{folder}/a", "b": f"{folder}/dora" if options.get("dora") else f"{folder}/b"}
    peak, merged = 0, None
    merged = samerge.merge(f"{folder}/base", adapters, progress=False, **options)
    record = merged.report.record
    told = record.json()
    said = {name: told[name] for name in ("layers", "adapters", "output", "inputs")}
    said |= {"size": group.size, "peak": peak}
    stem = f"{sys.argv[3]}/{name}-{group.size}"
    save_file({key: t.contiguous() for key, t in merged.tensors().items()}, f"{stem}-{group.rank}.safetensors")
    open(f"{stem}-{group.rank}.json", "w").write(json.dumps(said))
    if group.first:
        merged.save(stem)
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
"""

#: Processes that wait for one another in vain wait for ever; no machine is so busy.
HANGS = 1800

#: Fails in one process in several ways, one after the other; what is raised must be raised in both, and leave them able
#: to go on.
FAILING = """
import sys, torch, json
import torch.distributed as dist
import samerge
from samerge.parallel.processes import join
from samerge.weights.tensorfile import TensorFile
torch.set_num_threads(1)
folder = sys.argv[1]
group = join()
said, reading = {}, TensorFile.read

def attempt(name, broken="b", options=None, fails=lambda tensor: False):
    def read(self, tensor, *arguments):
        if fails(tensor):
            raise OSError(f"the disk with {tensor} is gone")
        return reading(self, tensor, *arguments)

    TensorFile.read = read
    try:
        merged = samerge.merge(
            f"{folder}/base", {"a": f"{folder}/a", "b": f"{folder}/{broken}"}, rank=3, progress=False, **(options or {})
        )
        said[name] = [float(sum(t.double().abs().sum() for t in merged.tensors().values())), ""]
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]

second = group.rank == 1
SALIENCY = {"method": "saliency", "iterations": 2}
attempt("well", options=SALIENCY)
attempt("absent", "nowhere" if second else "b", options=SALIENCY)
attempt("factors", options=SALIENCY, fails=lambda tensor: second and "lora_B" in tensor)
attempt("rows", options=SALIENCY, fails=lambda tensor: second and tensor.endswith("up_proj.weight"))
attempt("not a number", "nan", options=SALIENCY)
attempt("sum", "nan", options={"method": "svd"})
attempt("again", options=SALIENCY)
open(f"{sys.argv[2]}/failing-{group.rank}.json", "w").write(json.dumps(said))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name, targets in (("a", ["q_proj", "v_proj", "down_proj"]), ("b", every), ("dora", ["q_proj", "up_proj"])):
        setup = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, use_dora=name == "dora")
        setup.base_model_name_or_path = str(folder / "base")
        peft = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), setup)
        peft.save_pretrained(folder / name)
    (folder / "nan").mkdir()
    (folder / "nan" / "adapter_config.json").write_bytes((folder / "b" / "adapter_config.json").read_bytes())
    tensors = load_file(folder / "b" / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.2.mlp.gate_proj.lora_A.weight"][1, 2] = float("nan")
    save_file(tensors, folder / "nan" / "adapter_model.safetensors")
    return folder


def launch(script: str, sizes: str, out: Path, *arguments: str) -> None:
    file = out / "worker.py"
    file.write_text(script)
    forked = Path(__file__).with_name("forked.py")
    command = [sys.executable, str(forked), sizes, str(file), *arguments, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 1, 2 and 4 processes said of every way."""
    out = tmp_path_factory.mktemp("runs")
    launch(WORKER, "1,2,4", out, str(experts), json.dumps(WAYS))
    return out


def said(runs: Path, way: str, size: int) -> list[dict[str, Any]]:
    return [json.loads((runs / f"{way}-{size}-{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [2, 4])
def test_processes_agree_with_each_other_and_with_one(size: int, way: str, runs: Path) -> None:
    [alone], together = said(runs, way, 1), said(runs, way, size)
    assert [one["size"] for one in together] == [size] * size
    for rank, one in enumerate(together):
        same_record(one, {**alone, "size": size, "peak": one["peak"]})
        found = load_file(runs / f"{way}-{size}-{rank}.safetensors")
        expected = load_file(runs / f"{way}-1-0.safetensors")
        same_updates(found, expected)
    same_updates(load_file(runs / f"{way}-{size}" / "adapter_model.safetensors"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [way for way in WAYS if way not in ("default", "sum", "weights", "lego", "dora", "calibrated")]
)
def test_every_process_holds_its_part_of_the_factors(way: str, runs: Path) -> None:
    [alone] = said(runs, way, 1)
    for size in (2, 4):
        peaks = [one["peak"] for one in said(runs, way, size)]
        if way == "ties":  # looks at whole adapters
            assert min(peaks) >= 0.9 * alone["peak"]
        else:
            assert max(peaks) <= alone["peak"] * (1 / size + 0.15)  # its own, and one weight of others


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_all(experts: Path, tmp_path: Path) -> None:
    launch(FAILING, "2", tmp_path, str(experts))
    first, second = (json.loads((tmp_path / f"failing-{rank}.json").read_text()) for rank in range(2))
    assert isinstance(first["well"][0], float)
    for one in (second["well"], first["again"], second["again"]):
        same_record(one, first["well"])
    assert first["absent"] == second["absent"]
    assert first["absent"][0] in ("AdapterError", "HubError")
    for way, tensor in (("factors", "lora_B"), ("rows", "up_proj.weight")):
        assert second[way][0] == "OSError"
        assert first[way][0] == "DistributedError"
        assert first[way][1] == f"process 1 of 2: OSError: {second[way][1]}"
        assert tensor in second[way][1]
    for way in ("not a number", "sum"):
        assert first[way] == second[way]
        assert first[way][0] == "AdapterError"
        assert "'b'" in first[way][1]
        assert "layers.2.mlp.gate_proj" in first[way][1]


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_launchers_start_the_command_line(launcher: str, experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    if launcher == "torchrun":
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    else:  # on CPUs, without MPI, this starts one process
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
        launch += ["--mixed_precision=no", "--dynamo_backend=no"]
    launch += ["-m", "samerge", "merge", "--base", str(experts / "base")]
    launch += [f"--adapter={experts / name}" for name in ("a", "b")]
    launch += ["--method", "saliency", "--iterations", "2", "--out", str(out), "--json"]
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads(done.stdout)["out"] == str(out)  # one process speaks


def test_rows_are_shared_out_once_each() -> None:
    for size in (1, 2, 3, 8):
        for count in (0, 1, 5, 8, 17):
            parts = [number for rank in range(size) for number in Group(rank, size).share(count)]
            assert parts == list(range(count))


def test_what_is_owned_is_balanced() -> None:
    for size in (1, 2, 3, 8):
        sizes = [7, 1, 1, 3, 9, 9, 2, 4, 4, 4, 1, 8, 5]
        owners = Group(0, size).owners(sizes)
        held = [sum(s for s, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(size)]
        assert owners == Group(size - 1, size).owners(sizes)
        assert sum(held) == sum(sizes)
        assert max(held) <= max(9, sum(sizes) / size + 4)
