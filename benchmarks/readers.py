"""Whether the files that samerge writes do in their readers' own code what was merged.

    python benchmarks/readers.py

Tiny merges are written in each format and read by sd-scripts (kohya's `networks/lora.py` as it is, fetched at one
commit, with stand-ins for what it imports of its library), by diffusers (`pipe.load_lora_weights` of Stable Diffusion,
SDXL and Flux, as installed), and by mlx-lm (in an environment of its own, made in `--cache`). GGUF files are held to
those that llama.cpp's own `convert_lora_to_gguf.py` makes of the same adapter, in each family that samerge writes. The
figure is the largest difference to what PEFT's own sum of the sources gives, as a share of the largest entry: of the
updates for diffusers, sd-scripts and llama.cpp, of the logits' change for mlx-lm. Writes
benchmarks/results/readers.json; ends with code 1 where a figure is above 1e-4.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import types
import urllib.request
import venv
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import consumers
import torch
import transformers
import transformers.integrations.peft as integration
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

import samerge
from samerge.adapters.formats.gguf_names import ARCHITECTURES

RESULTS = Path(__file__).resolve().parent / "results" / "readers.json"
MOST = 1e-4
COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"
SOURCE = f"https://raw.githubusercontent.com/kohya-ss/sd-scripts/{COMMIT}/networks/lora.py"
MLX = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]
#: What mlx-lm makes of a base and an adapter.
READ_BY_MLX = """
import json, sys
import mlx.core as mx
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from pathlib import Path
mx.set_default_device(mx.cpu)
base, adapter = sys.argv[1:]
ids = mx.arange(16)[None]
model, _ = load_model(Path(base))
before = model(ids)
print(json.dumps([before.tolist(), load_adapters(model, adapter)(ids).tolist()]))
"""


def updates(models: Mapping[str, nn.Module], names: list[str]) -> dict[str, Tensor]:
    """What adapters add to the weights of several models together, by PEFT."""
    found: dict[str, Tensor] = {}
    for part, model in models.items():
        for path, module in model.named_modules():
            if isinstance(module, LoraLayer) and any(name in module.lora_A for name in names):
                parts = [module.get_delta_weight(name) for name in names if name in module.lora_A]
                found[f"{part}.{path}"] = sum(parts[1:], parts[0]).detach()
    return found


def off(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference, as a share of the largest entry; infinite where the modules are not the same."""
    if found.keys() != expected.keys():
        return float("inf")
    return max(float((found[name] - one).abs().max() / one.abs().max()) for name, one in expected.items())


def with_adapters(pipe: Any) -> tuple[Any, dict[str, nn.Module]]:
    """A pipeline with two adapters of different ranks on its models, convolutions among what they adapt."""
    from pipelines import put_on

    names = [name for name in ("unet", "transformer", "text_encoder", "text_encoder_2") if pipe.components.get(name)]
    models = {name: pipe.components[name] for name in names}
    for seed, (part, model) in enumerate(models.items()):
        attention = ["q_proj", "out_proj"] if "text" in part else ["to_q", "to_v", "to_out.0"]
        other = ["out_proj", "fc1"] if "text" in part else ["to_q", "conv1"] if part == "unet" else ["to_q", "proj_mlp"]
        put_on(model, "a", 10 * seed, attention)
        put_on(model, "b", 10 * seed + 1, other, r=3, lora_alpha=5)
    return pipe, models


def by_diffusers(make: Any, format: str, folder: Path) -> float:
    """A pipeline's merge, written and loaded onto a fresh one."""
    pipe, models = with_adapters(make())
    out = samerge.merge(pipe, ["a", "b"], method="linear", progress=False).save(folder / "merged", format=format)
    fresh = make()
    fresh.load_lora_weights(load_file(out), adapter_name="m")
    return off(updates({part: fresh.components[part] for part in models}, ["m"]), updates(models, ["a", "b"]))


def sd_scripts(cache: Path) -> types.ModuleType:
    """kohya's `networks/lora.py`."""
    file = cache / f"sd-scripts-{COMMIT[:12]}" / "lora.py"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(SOURCE, file)
    library, utils, unet = (types.ModuleType(f"library{end}") for end in ("", ".utils", ".sdxl_original_unet"))
    utils.setup_logging = lambda: None  # type: ignore[attr-defined]
    unet.SdxlUNet2DConditionModel = type("SdxlUNet2DConditionModel", (), {})  # type: ignore[attr-defined]
    sys.modules |= {one.__name__: one for one in (library, utils, unet)}
    spec = importlib.util.spec_from_file_location("kohya_lora", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_sd_scripts(cache: Path, folder: Path) -> float:
    """A merge of Stable Diffusion, put into the weights of a fresh one by kohya's network."""
    from pipelines import stable_diffusion

    pipe, models = with_adapters(stable_diffusion())
    expected = updates(models, ["a", "b"])
    out = samerge.merge(pipe, ["a", "b"], method="linear", progress=False).save(folder / "merged", format="kohya")
    fresh = stable_diffusion()
    encoder = nn.Module()  # as transformers has had it until 5.6, and as kohya's names are made
    encoder.text_model = fresh.text_encoder
    before = weights_of(fresh, models)
    kohya = sd_scripts(cache)
    network, state = kohya.create_network_from_weights(1.0, str(out), None, encoder, fresh.unet, for_inference=True)
    network.merge_to(encoder, fresh.unet, state, torch.float32, "cpu")
    changed = {name: one - before[name] for name, one in weights_of(fresh, models).items()}
    return off({name: change for name, change in changed.items() if bool(change.any())}, expected)


def weights_of(pipe: Any, parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """All weights of some models of a pipeline, by the names of their modules."""
    states = {part: pipe.components[part].state_dict() for part in parts}
    return {
        f"{part}.{name.removesuffix('.weight')}": tensor.clone()
        for part, state in states.items()
        for name, tensor in state.items()
        if name.endswith(".weight")
    }


def by_mlx(cache: Path, folder: Path) -> float:
    """A merge on a tiny Llama, its logits by mlx-lm beside those of PEFT with both adapters."""
    python = cache / "mlx" / "bin" / "python"
    if not python.exists():
        venv.create(cache / "mlx", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *MLX], check=True)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, **heads, **tokens)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")

    def fresh() -> Any:
        return transformers.LlamaForCausalLM.from_pretrained(folder / "base").eval()

    for name, rank, targets in (("a", 4, ["q_proj", "v_proj", "down_proj"]), ("b", 3, ["q_proj", "o_proj"])):
        settings = LoraConfig(r=rank, lora_alpha=8, target_modules=targets, init_lora_weights=False)
        get_peft_model(fresh(), settings).save_pretrained(folder / name)
    sources = [folder / "a", folder / "b"]
    merged = samerge.merge(folder / "base", sources, method="linear", progress=False)
    out = merged.save(folder / "merged", format="mlx")
    peft = PeftModel.from_pretrained(fresh(), sources[0], adapter_name="a")
    peft.load_adapter(sources[1], adapter_name="b")
    peft.base_model.set_adapter(["a", "b"])
    with torch.no_grad():
        plain, expected = (model(torch.arange(16)[None]).logits for model in (fresh(), peft))
    done = subprocess.run([python, "-c", READ_BY_MLX, folder / "base", out], capture_output=True, text=True, check=True)
    before, after = (torch.tensor(one) for one in json.loads(done.stdout.splitlines()[-1]))
    return max(off({"x": before}, {"x": plain}), off({"x": after - before}, {"x": expected - plain}))


def in_gguf(path: Path) -> dict[str, Tensor]:
    """What a GGUF file adds to each of llama.cpp's tensors, its architecture before their names."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    parts = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    stems = {name.rpartition(".lora_")[0] for name in parts}
    kind = reader.fields["general.architecture"].contents()
    scales = {stem: alpha / parts[f"{stem}.lora_a"].shape[0] for stem in stems}
    return {f"{kind}: {s}": scale * parts[f"{s}.lora_b"] @ parts[f"{s}.lora_a"] for s, scale in scales.items()}


def by_llama_cpp(cache: Path, kind: str, folder: Path) -> float:
    """An adapter of a family, in GGUF by samerge, beside llama.cpp's own conversion of it."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    kinds = transformers.CONFIG_MAPPING
    model = transformers.AutoModelForCausalLM.from_config(kinds[kind](**sizes, **heads))
    model.save_pretrained(folder / "base")
    settings = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    ours = samerge.convert_adapter(folder / "adapter", "gguf", folder / "base", progress=False).save(folder / "a.gguf")
    script = consumers.fetched(cache, ["llama-cpp-python"]) / "llama.cpp" / "convert_lora_to_gguf.py"
    theirs = folder / "b.gguf"
    words = ["--base", str(folder / "base"), "--outfile", str(theirs), "--outtype", "f32", str(folder / "adapter")]
    subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True)
    return off(in_gguf(ours), in_gguf(theirs))


def main() -> None:
    """Run all of it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "samerge-consumers")
    cache = parser.parse_args().cache
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from pipelines import flux_pipeline, stable_diffusion, stable_diffusion_xl

    if hasattr(integration, "check_peft_version"):  # asks for a PEFT that is not out yet
        integration.check_peft_version = lambda **given: None
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    made = {"Stable Diffusion": stable_diffusion, "SDXL": stable_diffusion_xl, "Flux": flux_pipeline}
    runs: dict[str, Any] = {
        f"diffusers, {name}, {format}": lambda folder, make=make, format=format: by_diffusers(make, format, folder)
        for name, make in made.items()
        for format in ("diffusers", "kohya")
        if (name, format) != ("Flux", "kohya")  # of its own names, diffusers reads some alone as kohya's
    }
    runs["sd-scripts, Stable Diffusion, kohya"] = lambda folder: by_sd_scripts(cache, folder)
    for kind in sorted(ARCHITECTURES):
        runs[f"llama.cpp, {kind}, gguf"] = lambda folder, kind=kind: by_llama_cpp(cache, kind, folder)
    runs["mlx-lm, Llama, mlx"] = lambda folder: by_mlx(cache, folder)
    figures = {}
    for name, run in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = run(Path(folder))
        print(f"{name}: {figures[name]:.2g}")
    packages = {name: version(name) for name in ("diffusers", "transformers", "peft", "torch")}
    versions = {**packages, **dict(one.replace("[cpu]", "").split("==") for one in MLX), "sd-scripts": COMMIT}
    versions |= {"llama-cpp-python": consumers.PACKAGES["llama-cpp-python"]}
    RESULTS.write_text(json.dumps({"versions": versions, "off": figures}, indent=2) + "\n")
    sys.exit(any(not figure < MOST for figure in figures.values()))


if __name__ == "__main__":
    main()
