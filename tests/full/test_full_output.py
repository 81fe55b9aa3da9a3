"""The merged model on disk, and as an adapter."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from alike import header, same_tensors, same_values
from herd import read
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import samerge
from samerge.errors import OptionError, OutputExistsError
from samerge.full.companions import write_companions
from samerge.full.given_models import open_model
from samerge.full.shards import plan, shard_bytes
from samerge.report.card import model_card
from samerge.report.record import Record
from samerge.report.report import read_report
from samerge.report.stored import Base, Input, Output
from samerge.weights.quantised import quantization


def merge(herd, **options):
    return samerge.merge_full(
        herd.base, herd.experts, **{"density": 0.3, "iterations": 2, "progress": False, **options}
    )


def logits(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        if "pixel_values" in model.main_input_name:
            return model(pixel_values=torch.randn(2, 3, 8, 8, generator=generator).to(model.dtype)).logits
        ids = torch.randint(3, 40, (2, 7), generator=generator)
        more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **more)[0]


@pytest.mark.parametrize("live", [False, True], ids=["folder", "live"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit", "albert"])
def test_transformers_loads_it(herd_of, family, live, tmp_path):
    herd = herd_of(family)
    base = herd.model(herd.base) if live else herd.base
    experts = {name: herd.model(folder) if live else folder for name, folder in herd.experts.items()}
    merged = samerge.merge_full(base, experts, density=0.3, iterations=2, progress=False)
    out = merged.save(tmp_path / "out")
    found = read(out)
    assert set(found) == set(merged.shapes)
    assert all(torch.equal(found[name], merged.tensor(name)) for name in found)
    model = type(herd.model(herd.base)).from_pretrained(out)
    dense = herd.model(herd.base)  # the same tensors put in by hand
    own = dict(dense.named_parameters())
    loaded = dict(model.named_parameters())
    assert set(own) == set(loaded)
    changed = sum(not torch.equal(own[name], loaded[name]) for name in own)
    assert changed == len(own)
    if live or family != "vit":  # on disk its tensors have other names
        for name, tensor in dense.named_parameters():
            key = name if name in found else f"{dense.base_model_prefix}.{name}"
            tensor.data.copy_(found.get(key, found.get(name.removeprefix(f"{dense.base_model_prefix}."))))
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in dense.named_parameters())
        same_values(logits(model), logits(dense))


@pytest.mark.slow
def test_a_new_process_gives_the_logits_of_the_dense_merge(llama, tmp_path):
    merged = merge(llama)
    out = merged.save(tmp_path / "out", max_shard_size="8KB")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(sys.argv[1]);"
        "print(m(torch.tensor([[3, 9, 27]])).logits.double().flatten().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    dense = llama.model(llama.base)
    for name, tensor in dense.named_parameters():
        tensor.data.copy_(merged.tensor(name))
    with torch.no_grad():
        expected = dense(torch.tensor([[3, 9, 27]])).logits.flatten()
    found = torch.tensor(json.loads(done.stdout), dtype=torch.float64)
    same_values(found, expected)  # its norms are computed in float32


def test_what_is_in_the_folder(llama, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in llama.base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja", "modeling_own.py", "README.md", ".hidden"):
        (base / name).write_text(name)
    for name in ("optimizer.pt", "pytorch_model.bin", "trainer_state.json", "adapter_config.json"):
        (base / name).write_text(name)
    merged = samerge.merge_full(base, llama.experts, iterations=1, progress=False)
    out = merged.save(tmp_path / "merged")
    found = {path.name for path in out.iterdir()}
    assert found == {
        *("config.json", "generation_config.json", "model.safetensors", "samerge.json", "README.md"),
        *("tokenizer.json", "tokenizer.model", "chat_template.jinja"),
    }
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((base / "config.json").read_text())
    record = read_report(out).record
    assert record.output.kind == "model"
    assert record.output.tensors == len(merged.shapes)
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "One model, merged from 3 fine-tuned checkpoints" in card
    assert "from transformers import LlamaForCausalLM" in card
    assert 'LlamaForCausalLM.from_pretrained("path/or/repository-of-this-model")' in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("holder", ["quantization_config", "compression_config", "text_config"])
def test_a_quantised_base_comes_out_in_full_precision(llama, tmp_path, holder):
    base = tmp_path / "base"
    shutil.copytree(llama.base, base)
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, base / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = json.loads((base / "config.json").read_text())
    config[holder] = {"quantization_config": settings} if holder == "text_config" else settings
    (base / "config.json").write_text(json.dumps(config))
    merged = samerge.merge_full(base, llama.experts, iterations=1, progress=False)
    assert "the base is quantised; the merged model is written in full precision" in merged.report.warnings
    out = merged.save(tmp_path / "out")
    assert not quantization(json.loads((out / "config.json").read_text()))
    assert all(tensor.dtype.itemsize > 1 for tensor in read(out).values())


def test_settings_that_change_are_of_full_precision_too(llama, tmp_path):
    inner = {"tie_word_embeddings": False, "quantization_config": {"quant_method": "fp8"}}
    write_companions(tmp_path, open_model("base", llama.base), None, changes={"text_config": inner})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"] == {"tie_word_embeddings": False}


def test_buffers_of_a_live_quantised_model_are_left_out():
    """They are part of packed weights."""

    class Live(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)
            self.layer.register_buffer("scales", torch.ones(3))
            self.config = config

    class Config(dict):
        to_dict = dict.copy

    assert "layer.scales" in open_model("base", Live(Config(model_type="x"))).source.shapes
    settings = {"quant_method": "fp8"}
    for more in ({"compression_config": settings}, {"text_config": {"quantization_config": settings}}):
        assert "layer.scales" not in open_model("base", Live(Config(model_type="x", **more))).source.shapes


class TestCompanions:
    """Files of known names that lie inside; code where it is asked for."""

    @pytest.fixture
    def base(self, llama, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(llama.base, base)
        (base / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "own.Own"}, "bos_token": "<s>"}')
        (base / "modeling_own.py").write_text("raise SystemExit('it ran')")
        named = {"auto_map": {"AutoModel": "modeling_own.Own"}, "attn_implementation": "org/kernel"}
        config = json.loads((base / "config.json").read_text()) | {**named, "vision_config": {"auto_map": {}}}
        (base / "config.json").write_text(json.dumps(config))
        return base

    @pytest.mark.parametrize("code", [False, True])
    def test_code(self, llama, base, tmp_path, code):
        merged = samerge.merge_full(base, llama.experts, iterations=1, progress=False)
        out = merged.save(tmp_path / "merged", trust_remote_code=code)
        assert (out / "modeling_own.py").exists() is code
        for name in ("config.json", "tokenizer_config.json"):
            assert ("auto_map" in (out / name).read_text()) is code
        assert ("org/kernel" in (out / "config.json").read_text()) is code
        told = "the model holds code of its base" if code else "the base's own code was left out"
        assert any(told in warning and "modeling_own.py" in warning for warning in read_report(out).warnings)
        assert told in (out / "README.md").read_text()
        if not code:
            assert json.loads((out / "tokenizer_config.json").read_text()) == {"bos_token": "<s>"}

    def test_a_link_out_of_the_folder(self, llama, base, tmp_path):
        secret = tmp_path / "id_rsa"
        secret.write_text("-----BEGIN PRIVATE KEY-----")
        (base / "special_tokens_map.json").symlink_to(secret)
        (base / "vocab.json").symlink_to("../id_rsa")
        os.mkfifo(base / "merges.txt")
        (base / "real.txt").write_text("words")
        (base / "vocab.txt").symlink_to("real.txt")
        merged = samerge.merge_full(base, llama.experts, iterations=1, progress=False)
        out = merged.save(tmp_path / "merged")
        assert (out / "vocab.txt").read_text() == "words"
        assert not [path for path in out.iterdir() if "PRIVATE" in path.read_bytes().decode(errors="replace")]
        told = [
            warning for warning in read_report(out).warnings if "no regular files inside the base's folder" in warning
        ]
        assert told
        assert all(name in told[0] for name in ("special_tokens_map.json", "vocab.json", "merges.txt"))

    def test_the_cache_of_the_hub(self, llama, base, tmp_path):
        repository = tmp_path / "models--ada--base"
        (repository / "blobs").mkdir(parents=True)
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (base / "vocab.txt").write_text("words")
        for path in base.iterdir():
            path.rename(repository / "blobs" / f"hash-of-{path.name}")
            (repository / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
        merged = samerge.merge_full(repository / "snapshots" / "abc", llama.experts, iterations=1, progress=False)
        assert (merged.save(tmp_path / "merged") / "vocab.txt").read_text() == "words"


def test_the_card_names_the_models_of_the_hub():
    record = Record(
        method="elementwise",
        inputs=(Input("math", "ada/math"), Input("x", "./x")),
        output=Output("model", "float32", modules=2, parameters=10, tensors=3),
        layers={},
        base=Base("ada/base", "llama"),
    )
    card = model_card(record)
    assert card.startswith(
        "---\nbase_model:\n- ada/base\n- ada/math\nbase_model_relation: merge\nlibrary_name: transformers\n"
    )
    assert "\nbase_model_relation: merge\n" in card
    assert "peft" not in card


def test_shards(llama, tmp_path):
    merged = merge(llama)
    whole = read(merged.save(tmp_path / "one"))
    out = merged.save(tmp_path / "many", max_shard_size="20KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    for file in files:
        with safe_open(out / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            keys = set(opened.keys())
            assert keys == {name for name, where in index["weight_map"].items() if where == file}
            assert len(keys) == 1 or sum(whole[key].numel() * 8 for key in keys) <= 20_000
    found = read(out)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    same_values(logits(llama.model(out)), logits(llama.model(tmp_path / "one")))


def test_the_same_file_twice(llama, tmp_path):
    one, two = (merge(llama).save(tmp_path / name) / "model.safetensors" for name in "ab")
    assert header(one) == header(two)
    same_tensors(load_file(one), load_file(two), 1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "float32"])
def test_another_dtype(llama, dtype, tmp_path):
    merged = merge(llama, dtype=dtype)
    found = read(merged.save(tmp_path / "out"))
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    plain = merge(llama)
    assert {tensor.dtype for tensor in found.values()} == {kind}
    assert all(torch.equal(found[name], plain.tensor(name).to(kind)) for name in found)
    assert llama.model(tmp_path / "out").dtype == kind
    assert merged.report.record.output.dtype == str(kind).removeprefix("torch.")


def test_a_value_too_large_for_the_dtype(llama, tmp_path):
    merged = merge(llama, dtype="float16", scaling=1e7)
    with pytest.raises(
        samerge.BaseModelError, match=r"writing '.*' in torch.float16: .* too large .* dtype='bfloat16'"
    ):
        merged.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there(llama, tmp_path):
    merged = merge(llama)
    out = merged.save(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="exists already"):
        merged.save(out)
    merged.save(out, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    with pytest.raises(OutputExistsError, match=r"holds no config\.json"):
        merged.save(tmp_path / "other", overwrite=True)


def test_the_inputs_are_never_replaced(llama):
    merged = merge(llama)
    for folder, name in ((llama.base, "base"), (llama.experts["code"], "code")):
        with pytest.raises(OutputExistsError, match=f"it is the folder of {name!r}, which the merge reads from"):
            merged.save(folder, overwrite=True)


def test_push(llama, monkeypatch):
    from samerge.weights import pushing

    pushed = {}

    def push_folder(folder, repo_id, ready, **options):
        ready(repo_id)
        pushed.update(
            card=(folder / "README.md").read_text(),
            names=sorted(path.name for path in folder.iterdir()),
            repo_id=repo_id,
            **options,
        )
        return "address"

    monkeypatch.setattr(pushing, "push_folder", push_folder)
    assert merge(llama).push_to_hub("ada/merged", private=True) == "address"
    assert pushed["repo_id"] == "ada/merged"
    assert pushed["private"] is True
    assert pushed["commit_message"] == "Add model"
    assert "model.safetensors" in pushed["names"]
    assert 'LlamaForCausalLM.from_pretrained("ada/merged")' in pushed["card"]


class TestAsLora:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
    def test_full_rank_is_the_merge_inside_the_graph(self, herd_of, family, tmp_path):
        herd = herd_of(family)
        merged = merge(herd, outside="base")
        adapter = merged.as_lora(rank=32)
        base = read(herd.base)
        for key in merged.transposed:
            found = adapter.delta(key.removesuffix(".weight"))
            torch.testing.assert_close(found.double(), merged.tensor(key) - base[key], rtol=1e-4, atol=1e-5)
        adapter.save(tmp_path / "adapter")
        merged.save(tmp_path / "model")
        model = PeftModel.from_pretrained(herd.model(herd.base), tmp_path / "adapter").eval()
        expected = logits(herd.model(tmp_path / "model"))
        with torch.no_grad():
            found = logits(model.merge_and_unload())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert not any("leaves out" in warning for warning in adapter.report.warnings)

    def test_the_optimal_error(self, llama):
        merged = merge(llama)
        adapter = merged.as_lora(rank=4)
        base = read(llama.base)
        assert adapter.settings["r"] == adapter.settings["lora_alpha"] == 4
        for key in merged.transposed:
            module = key.removesuffix(".weight")
            update = merged.tensor(key) - base[key]
            values = torch.linalg.svdvals(update).square()
            optimal = float(values[4:].sum() / values.sum())
            layer = adapter.report.record.layers[module]
            assert layer.lost == pytest.approx(optimal, rel=0.01)
            error = float((adapter.delta(module).double() - update).square().sum() / values.sum())
            assert error == pytest.approx(layer.lost, rel=1e-3)
        told = " ".join(adapter.report.warnings)
        assert "leaves out what the merge changed outside the flow graph: 7 tensors" in told
        assert "truncation to rank 4 lost over 20% of the energy in" in told

    def test_energy_picks_the_ranks(self, llama):
        merged = merge(llama)
        adapter = merged.as_lora(energy=0.9)
        ranks = {}
        for module, layer in adapter.report.record.layers.items():
            assert layer.lost <= 0.1 + 1e-6
            ranks[module] = layer.rank
        assert adapter.settings["r"] == max(ranks.values())
        assert len(set(ranks.values())) > 1
        capped = merged.as_lora(rank=3, energy=0.9)
        assert capped.settings["r"] == 3
        assert any("rank 3 keeps less than energy=0.9 in" in warning for warning in capped.report.warnings)

    @pytest.mark.parametrize(
        ("options", "words"),
        [({}, "rank=..., energy=..."), ({"rank": 0}, "rank=0 must be"), ({"energy": 1.5}, "energy=1.5 must lie")],
    )
    def test_bad_arguments(self, llama, options, words):
        with pytest.raises(OptionError, match=words.replace(".", r"\.")):
            merge(llama, iterations=1).as_lora(**options)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("200mb", 2 * 10**8), ("1KiB", 1024), (7, 7), ("1.5 KB", 1500)]
)
def test_sizes(text, size):
    assert shard_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1MB", 0, "0GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(OptionError, match="is no size; give bytes"):
        shard_bytes(text)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own():
    spec, large = ((2,), torch.float32), ((100,), torch.float32)
    files = plan({"a": spec, "b": large, "c": spec, "d": spec}, 16)
    assert list(files.values()) == [["a"], ["b"], ["c", "d"]]


def test_a_base_of_the_hub_comes_with_its_tokenizer(llama, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id, *, allow_patterns, **options):
        asked[repo_id] = allow_patterns
        return str(llama.base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    merged = samerge.merge_full("ada/base", {"math": "ada/math"}, iterations=1, progress=False)
    assert "*.model" in asked["ada/base"]
    assert "*.model" not in asked["ada/math"]
    assert merged.report.record.base.name == "ada/base"
    assert "base_model:\n- ada/base\n- ada/math\n" in model_card(merged.report.record)
