"""Adapters baked into their base, beside PEFT's merge_and_unload: parameter by parameter, within one rounding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from pitfalls.lab import Bench, bert, close, gpt2, gpt_oss, llama, mixtral, output, quiet, qwen3_moe, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import samerge
from samerge.cli.app import app
from samerge.merging.verifying import verify
from samerge.weights.quantised import quantization


def bench(factory: Any, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Bench:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    return Bench(factory(**settings).eval().to(dtype), folder)


def trained(seed: int):
    def change(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.data.add_((torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype))
            if "lora_B" in name and name.endswith("bias"):
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    return change


def unloaded(lab: Bench, *folders: str) -> nn.Module:
    """What PEFT makes of it."""
    model = lab.fresh()
    for folder in folders:
        with quiet():
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval()


def read(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def within_a_rounding(found: Tensor, expected: Tensor, name: str) -> None:
    """PEFT rounds the update to the base's dtype before it adds it: two roundings apart at most, and float32's sums."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    eps = torch.finfo(found.dtype).eps
    size = expected.float().abs().clamp_min(float(expected.float().abs().max()) * 0.05)
    off = (found.float() - expected.float()).abs() / size.clamp_min(1e-30)
    assert float(off.max()) <= 4 * eps + 1e-6, f"{name}: {float(off.max()):.3g}"


def check(lab: Bench, folders: list[str], out: Path, **options: Any) -> nn.Module:
    """Bake, load as transformers does, and compare every parameter."""
    baked = samerge.bake(lab.base, folders, progress=False, **options)
    baked.save(out)
    with quiet():
        found = type(lab.model).from_pretrained(out).eval()
    expected = dict(unloaded(lab, *folders).named_parameters())
    assert expected.keys() == dict(found.named_parameters()).keys()
    for name, parameter in found.named_parameters():
        within_a_rounding(parameter.detach(), expected[name].detach(), name)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (llama, {"target_modules": "all-linear"}),
        (llama, {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 5}}),
        (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        (bert, {"target_modules": ["query", "output.dense"], "task_type": "SEQ_CLS"}),
        (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    ],
)
def test_it_is_merge_and_unload(factory, settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    lab = bench(factory, tmp_path, dtype)
    folder = lab.train("a", trained(1), **settings)
    check(lab, [folder], tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after == json.loads((Path(lab.base) / "config.json").read_text())
    assert {one.dtype for one in read(tmp_path / "out").values()} == {dtype}


@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (llama, {"target_modules": ["q_proj"], "use_dora": True}),
        (bert, {"target_modules": ["query"], "bias": "all"}),
        (bert, {"target_modules": ["query"], "lora_bias": True}),
        (bert, {"target_modules": ["query"], "modules_to_save": ["pooler", "LayerNorm"]}),
        (llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]}),
        (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
        (qwen3_moe, {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
        (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}),
    ],
)
def test_whatever_peft_trains(factory, settings: dict[str, Any], tmp_path: Path) -> None:
    lab = bench(factory, tmp_path)
    check(lab, [lab.train("a", trained(1), **settings)], tmp_path / "out")


def test_several_with_weights(tmp_path: Path) -> None:
    """Against dense sums; the weights by module, too."""
    lab = bench(bert, tmp_path)
    first = lab.train("a", trained(1), target_modules=["query"], task_type="SEQ_CLS")
    second = lab.train("b", trained(2), target_modules=["query", "value"], task_type="SEQ_CLS", r=3)
    base = lab.model.state_dict()
    one, two = (unloaded(lab, folder).state_dict() for folder in (first, second))
    weights = {"a": 0.5, "b": -1.0}
    baked = samerge.bake(lab.base, {"a": first, "b": second}, weights=weights, modules={"layer.1.*": {"b": 2}})
    for name, tensor in base.items():
        factor = 2 if ".layer.1." in name else 1
        close(baked.tensor(name), tensor + 0.5 * (one[name] - tensor) - factor * (two[name] - tensor))
    record = baked.report.record
    assert [item.weight for item in record.inputs] == [0.5, -1.0]
    layer = record.layers["bert.encoder.layer.1.attention.self.query"]
    assert layer.adapters["b"].weight == -2.0
    name = "bert.encoder.layer.1.attention.self.query.weight"
    assert layer.norm == pytest.approx(float((baked.tensor(name) - base[name]).norm()), rel=1e-4)
    assert layer.adapters["b"].norm == pytest.approx(float((two[name] - base[name]).norm()), rel=1e-4)


def test_the_norms_of_dora(tmp_path: Path) -> None:
    lab = bench(llama, tmp_path)
    folder = lab.train("a", target_modules=["q_proj"], use_dora=True)
    name = "model.layers.0.self_attn.q_proj"
    moved = unloaded(lab, folder).state_dict()[f"{name}.weight"] - lab.model.state_dict()[f"{name}.weight"]
    layer = samerge.bake(lab.base, folder, weights=[0.5], progress=False).report.record.layers[name]
    assert layer.adapters["a"].norm == pytest.approx(float(moved.norm()), rel=1e-4)
    assert layer.norm == pytest.approx(0.5 * float(moved.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("factory", "embedding", "how"),
    [
        *[(llama, "embed_tokens", how) for how in ("lora", "saved", "head", "rows")],
        *[(gpt2, "wte", how) for how in ("lora", "saved", "head", "rows")],
        # not rows: PEFT's own forward drops the bias of a head whose embedding has trained rows
        *[("bert-mlm", "word_embeddings", how) for how in ("lora", "saved", "head")],
    ],
)
def test_tied_weights(factory, embedding: str, how: str, tmp_path: Path) -> None:
    """What the model with the adapter on it says: merge_and_unload would change the head along with the embedding."""
    if factory == "bert-mlm":
        config = transformers.BertConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        lab = bench(lambda: transformers.BertForMaskedLM(config), tmp_path)
        lab.model.cls.predictions.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    else:
        lab = bench(factory, tmp_path, **({"tie_word_embeddings": True} if factory is llama else {}))
    head = "cls.predictions.decoder" if factory == "bert-mlm" else "lm_head"
    settings: dict[str, Any] = {
        "lora": {"target_modules": [embedding]},
        "saved": {"target_modules": "all-linear", "modules_to_save": [embedding]},
        "head": {"target_modules": [head]},
        "rows": {"target_modules": "all-linear", "trainable_token_indices": {embedding: [3, 5]}},
    }[how]
    with quiet():
        folder = lab.train("a", trained(1), **settings)
        expected = output(lab.with_adapters(folder))
        baked = samerge.bake(lab.base, folder, progress=False)
        baked.save(tmp_path / "out")
        found = type(lab.model).from_pretrained(tmp_path / "out").eval()
    close(output(found), expected, 1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if how == "rows":
        assert config.get("tie_word_embeddings", True) is True
    else:
        assert config["tie_word_embeddings"] is False
        assert any("tied to it in different ways" in note for note in baked.report.record.notes)


def test_weights_tied_in_several_places_are_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(
        d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, vocab_size=32, decoder_start_token_id=0
    )
    lab = bench(lambda: transformers.T5ForConditionalGeneration(config), tmp_path)
    folder = lab.train("a", target_modules=["q", "shared"])
    with pytest.raises(samerge.AdapterError, match=r"'shared.weight' is tied to \['decoder.embed.*modules=\{'shared'"):
        samerge.bake(lab.base, folder, progress=False)
    check(lab, [lab.train("b", target_modules=["q", "wo"])], tmp_path / "out")


def test_shards_companions_and_the_record(tmp_path: Path) -> None:
    lab = bench(llama, tmp_path)
    folder = lab.train("a", target_modules=["q_proj"])
    (Path(lab.base) / "tokenizer.json").write_text("{}")
    (Path(lab.base) / "secret.key").write_text("x")
    baked = samerge.bake(lab.base, folder, progress=False)
    baked.save(tmp_path / "out", max_shard_size=6000)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "model.safetensors.index.json", "samerge.json", "README.md"} <= names
    assert "secret.key" not in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 3
    with quiet():
        found = type(lab.model).from_pretrained(tmp_path / "out").eval()
    close(output(found), output(lab.with_adapters(folder)))
    untouched = [name for name in lab.model.state_dict() if "q_proj" not in name]
    after = read(tmp_path / "out")
    assert all(torch.equal(after[name], lab.model.state_dict()[name]) for name in untouched)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "One model" in card
    assert "with 1 LoRA adapters baked in" in card
    assert all(one.sound for one in verify(tmp_path / "out"))
    for where in (lab.base, folder):
        with pytest.raises(samerge.OutputExistsError):
            baked.save(where, overwrite=True)


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    lab = bench(llama, tmp_path, torch.float16)
    folder = lab.train("a", lambda model: [p.data.mul_(300) for n, p in model.named_parameters() if "lora_" in n],
                       target_modules=["q_proj"], lora_alpha=100)  # fmt: skip
    baked = samerge.bake(lab.base, folder, progress=False)
    with pytest.raises(samerge.BaseModelError, match=r"q_proj.weight' in torch.float16: a merged value is too large"):
        baked.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    samerge.bake(lab.base, folder, dtype="bfloat16", progress=False).save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("holder", ["quantization_config", "compression_config", "text_config"])
def test_quantised_bases(tmp_path: Path, holder: str) -> None:
    """FP8 with one scale a tensor, whose meaning is plain: weight * scale."""
    lab = bench(llama, tmp_path, torch.bfloat16)
    folder = lab.train("a", target_modules=["q_proj", "up_proj"])
    packed = Path(lab.base)
    tensors, plain = load_file(packed / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
        plain[name] = tensors[name].float() * scale
    save_file(tensors, packed / "model.safetensors")
    config = json.loads((packed / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config[holder] = {"quantization_config": settings} if holder == "text_config" else settings
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(samerge.BaseModelError, match=r"it is quantised \(.*_proj.weight.*dequantise=True"):
        samerge.bake(packed, folder, progress=False)
    baked = samerge.bake(packed, folder, dequantise=True, progress=False)
    baked.save(tmp_path / "out")
    after = read(tmp_path / "out")
    assert not quantization(json.loads((tmp_path / "out" / "config.json").read_text()))
    update = load_file(Path(folder) / "adapter_model.safetensors")
    for name, weight in plain.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{stem}A.weight" in update:
            weight = weight + 2.0 * update[f"{stem}B.weight"].float() @ update[f"{stem}A.weight"].float()
        within_a_rounding(after[name], weight.to(torch.bfloat16), name)


def test_a_live_base_stays_as_it_is(tmp_path: Path) -> None:
    """Convolutions, and a model that transformers does not know."""
    from pitfalls.lab import Convolutions

    lab = bench(Convolutions, tmp_path)
    with quiet():
        model = get_peft_model(
            copy.deepcopy(lab.model), LoraConfig(r=2, lora_alpha=4, target_modules=["one", "two", "three"])
        )
        randomise(model, 3)
        model.save_pretrained(tmp_path / "a")
    before = copy.deepcopy(lab.model.state_dict())
    baked = samerge.bake(lab.model, str(tmp_path / "a"), progress=False)
    expected = model.merge_and_unload().state_dict()
    for name, tensor in expected.items():
        within_a_rounding(baked.tensor(name), tensor, name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lab.model.state_dict().items())


def test_what_has_no_place_in_the_checkpoint(tmp_path: Path) -> None:
    lab = bench(llama, tmp_path)
    with pytest.raises(samerge.AdapterError, match=r"a bias for 'model.layers.0.self_attn.q_proj' \(lora_bias\)"):
        samerge.bake(lab.base, lab.train("a", trained(1), target_modules=["q_proj"], lora_bias=True), progress=False)
    with pytest.raises(samerge.AdapterError, match="layer_replication"):
        samerge.bake(lab.base, lab.train("b", target_modules=["q_proj"], layer_replication=[[0, 2], [0, 2]]))
    folder = lab.train("c", target_modules=["q_proj"])
    with pytest.raises(samerge.OptionError, match="every adapter has the weight 0"):
        samerge.bake(lab.base, folder, weights=[0])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    lab = bench(bert, tmp_path)
    first = lab.train("a", trained(1), target_modules=["query"], task_type="SEQ_CLS")
    second = lab.train("b", trained(2), target_modules=["value"], task_type="SEQ_CLS")
    words = ["bake", "--base", lab.base, "-a", first, "-a", f"{second}:0.5", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--dtype", "bfloat16", "--max-shard-size", "10KB"])
    assert done.exit_code == 0, done.output
    assert "2 adapters baked into 4 weights" in done.stdout
    expected = samerge.bake(lab.base, [first, second], weights=[1, 0.5], dtype="bfloat16", progress=False)
    for name, tensor in read(tmp_path / "out").items():
        within_a_rounding(tensor, expected.tensor(name), name)
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "it exists already" in refused.stderr
