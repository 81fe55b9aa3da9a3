"""Several processes give what one gives, bit for bit the same on all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from samerge.distributed import Group

WORKER = """
import sys, torch, json, hashlib
import torch.distributed as dist
import samerge
from samerge.distributed import join
torch.set_num_threads(1)
base, first, second, out = sys.argv[1:]
group = join()
merged = samerge.merge(base, {"a": first, "b": second}, rank=3, iterations=3, progress=False)
kept = {m: {n: e["kept"] for n, e in layer["experts"].items()} for m, layer in merged.report.record["layers"].items()}
state = b"".join(t.contiguous().numpy().tobytes() for t in merged.tensors().values())
said = {"rank": group.rank, "size": group.size, "kept": kept, "sha": hashlib.sha256(state).hexdigest()}
open(f"{out}/{group.size}-{group.rank}.json", "w").write(json.dumps(said))
if group.first:
    merged.save(f"{out}/merged-{group.size}")
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    paths = []
    for name, targets in (("a", ["q_proj", "v_proj", "down_proj"]), ("b", ["q_proj", "up_proj"])):
        setup = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        setup.base_model_name_or_path = str(folder / "base")
        peft = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), setup)
        peft.save_pretrained(folder / name)
        paths.append(folder / name)
    return folder / "base", paths


def run(size: int, experts: tuple[Path, list[Path]], out: Path) -> list[dict]:
    script = out / "worker.py"
    script.write_text(WORKER)
    arguments = [str(script), str(experts[0]), *map(str, experts[1]), str(out)]
    command = [sys.executable, *arguments]
    if size > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *arguments]
        command = [sys.executable, *launch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{size}-{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 4])
def test_processes_agree_with_each_other_and_with_one(
    size: int, experts: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    (alone,) = run(1, experts, tmp_path)
    together = run(size, experts, tmp_path)
    assert [said["size"] for said in together] == [size] * size
    assert len({said["sha"] for said in together}) == 1
    assert all(said["kept"] == alone["kept"] for said in together)
    one = load_file(tmp_path / "merged-1" / "adapter_model.safetensors")
    many = load_file(tmp_path / f"merged-{size}" / "adapter_model.safetensors")
    for key, tensor in one.items():
        torch.testing.assert_close(many[key], tensor, rtol=1e-6, atol=1e-6)


def test_accelerate_launches_the_command_line(experts: tuple[Path, list[Path]], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "samerge", "merge", "--base", str(experts[0])]
    launch += [f"--adapter={path}" for path in experts[1]] + ["--iterations", "2", "--out", str(out), "--json"]
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads(done.stdout)["out"] == str(out)  # one process speaks


def test_rows_are_shared_out_once_each() -> None:
    for size in (1, 2, 3, 8):
        for count in (0, 1, 5, 8, 17):
            parts = [number for rank in range(size) for number in Group(rank, size).share(count)]
            assert parts == list(range(count))
