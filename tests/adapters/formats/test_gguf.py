"""GGUF files, in and out, read by the package `gguf`; llama.cpp's order of rows written out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Beast, write_adapter
from torch import Tensor
from typer.testing import CliRunner
from written_out import deltas, kohya, random, same

import samerge
from samerge.adapters.formats.table import read_any
from samerge.cli import app
from samerge.errors import AdapterError, BaseModelError, SamergeError

gguf = pytest.importorskip("gguf")

#: llama.cpp's names, and ours.
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj", "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
}  # fmt: skip


def formula(path: str | Path) -> dict[str, Tensor]:
    """What llama.cpp adds to each of its tensors: (alpha / r) b a."""
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    parts = {t.name: torch.from_numpy(t.data.copy()).double() for t in reader.tensors}
    found = {}
    for name, a in parts.items():
        if name.endswith(".weight.lora_a"):
            stem = name.removesuffix(".weight.lora_a")
            found[stem] = alpha / a.shape[0] * parts[f"{stem}.weight.lora_b"] @ a
    return found


def llamas(update: Tensor, heads: int) -> Tensor:
    """Rows of q or k in llama.cpp's order: row h d + 2 i + j is row h d + j d / 2 + i."""
    size = update.shape[0] // heads
    rows = [h * size + j * size // 2 + i for h in range(heads) for i in range(size // 2) for j in range(2)]
    return update[rows]


def expected(path: str, *, heads: dict[str, int]) -> dict[str, Tensor]:
    found = {}
    for module, delta in deltas(read_any(path, "x")).items():
        _, _, number, rest = module.split(".", 3)
        name = next(name for name, ours in NAMES.items() if ours == rest)
        found[f"blk.{number}.{name}"] = llamas(delta, heads[name]) if name in heads else delta
    return found


@pytest.mark.parametrize("name", ["math", "code", "talk"])
def test_a_llamas_adapter(llama: Beast, tmp_path, name):
    made = samerge.convert_adapter(llama.adapters[name], "gguf", llama.base, progress=False)
    out = made.save(tmp_path / "adapter")
    assert out == tmp_path / "adapter.gguf"
    same(formula(out), expected(llama.adapters[name], heads={"attn_q": 4, "attn_k": 2}))
    fields = {key: field.contents() for key, field in gguf.GGUFReader(out).fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"


def test_merged_and_read_back(llama: Beast, tmp_path):
    """llama.cpp's own names and order of rows merge as they are."""
    files = [
        samerge.convert_adapter(llama.adapters[name], "gguf", llama.base, progress=False).save(tmp_path / name)
        for name in ("math", "code")
    ]
    for file in files:
        same(deltas(read_any(file, "x")), formula(file))
    merged = samerge.merge(None, files, method="linear", weights=[0.5, 1.0], progress=False)
    out = merged.save(tmp_path / "both")
    one, two = (formula(file) for file in files)
    zero = torch.zeros(1)
    total = {name: 0.5 * one.get(name, zero) + two.get(name, zero) for name in {*one, *two}}
    same(formula(out), total)
    assert gguf.GGUFReader(out).fields["general.architecture"].contents() == "llama"


def test_half_precision(llama: Beast, tmp_path):
    made = samerge.convert_adapter(llama.adapters["math"], "gguf", llama.base, dtype="float16", progress=False)
    out = made.save(tmp_path / "adapter")
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors} == {"F16"}
    assert read_any(out, "x").dtype == torch.float16


def test_the_record_is_in_the_file(llama: Beast, tmp_path):
    run = CliRunner().invoke
    words = ["merge", "-a", llama.adapters["math"], "-a", llama.adapters["code"], "--base", llama.base]
    out = tmp_path / "both.gguf"
    assert run(app, [*words, "--method", "linear", "--format", "gguf", "-o", str(out), "--quiet"]).exit_code == 0
    told = json.loads(run(app, ["inspect", str(out), "--json"]).stdout)
    assert [one["name"] for one in told["inputs"]] == ["math", "code"]
    assert told["output"]["format"] == "gguf"
    assert run(app, ["verify", str(out)]).exit_code == 0


@pytest.mark.parametrize("how", ["full", "extract"])
def test_a_whole_model_as_a_file(llama: Beast, tmp_path, how: str):
    tuned = Path(shutil.copytree(llama.base, tmp_path / "tuned")) / "model.safetensors"
    tensors = load_file(tuned)
    for name in [name for name in tensors if "_proj" in name]:
        tensors[name] = tensors[name] + 0.1 * torch.randn(tensors[name].shape)
    save_file(tensors, tuned)
    if how == "full":
        adapter = samerge.merge_full(llama.base, [tuned.parent], iterations=1, progress=False).as_lora(4)
    else:
        adapter = samerge.extract_adapter(llama.base, tuned.parent, 4, progress=False)
    plain = str(adapter.save(tmp_path / "adapter"))
    same(formula(adapter.save(tmp_path / "out", format="gguf")), expected(plain, heads={"attn_q": 4, "attn_k": 2}))


def test_what_cannot_be_told_without_a_base(llama: Beast, bert: Beast, tmp_path):
    merged = samerge.merge(None, [llama.adapters["math"]], method="linear", progress=False)
    with pytest.raises(BaseModelError, match=r"there is no base; give base=.*llama, mistral"):
        merged.save(tmp_path / "out", format="gguf")
    made = samerge.convert_adapter(bert.adapters["math"], "gguf", bert.base, progress=False)
    with pytest.raises(BaseModelError, match=r"family 'bert'.*convert_lora_to_gguf"):
        made.save(tmp_path / "out")
    with pytest.raises(AdapterError, match="conv1' is a convolution, which it has no place for"):
        samerge.convert_adapter(kohya(tmp_path, "style"), "gguf", progress=False).save(tmp_path / "out")
    strange = write_adapter(tmp_path / "a", {"model.vision.proj": (random(2, 4), random(4, 2))})
    lone = samerge.merge(None, [strange], method="linear", progress=False)
    object.__setattr__(lone, "base", {"model_type": "llama", "num_hidden_layers": 2})
    with pytest.raises(AdapterError, match=r"llama has no tensor for 'model\.vision\.proj'"):
        lone.save(tmp_path / "out", format="gguf")
    assert not list(tmp_path.glob("*.gguf"))


def made(path: Path, tensors: dict[str, Tensor], alpha: float = 4.0, kind: str = "lora") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


STEM = "blk.0.attn_v.weight"
PAIR = {f"{STEM}.lora_a": torch.ones(2, 8), f"{STEM}.lora_b": torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("tensors", "more", "words"),
    [
        ({f"{STEM}.lora_a": torch.ones(2, 8)}, {}, r"'blk.0.attn_v' has \['lora_a'\]"),
        ({**PAIR, f"{STEM}.lora_b": torch.ones(4, 3)}, {}, r"\(4, 3\)"),
        ({**PAIR, "blk.0.attn_norm.weight": torch.ones(8)}, {}, "also holds 'blk.0.attn_norm.weight'"),
        (PAIR, {"alpha": float("nan")}, "adapter.lora.alpha is nan"),
        (PAIR, {"kind": "aura"}, "is no LoRA"),
    ],
)
def test_a_broken_file_is_refused_by_the_formats_name(tmp_path, tensors, more, words):
    path = made(tmp_path / "a.gguf", tensors, **more)
    with pytest.raises(AdapterError, match=words) as caught:
        read_any(path, "math")
    assert "'math'" in str(caught.value)
    assert "GGUF" in str(caught.value)


def test_a_text_that_is_none(tmp_path):
    path = made(tmp_path / "a.gguf", PAIR)
    path.write_bytes(path.read_bytes().replace(b"llama", b"\xff\xfeama", 1))
    with pytest.raises(AdapterError, match=r"'math' \(a GGUF file\).*UnicodeDecodeError"):
        read_any(path, "math")


@pytest.mark.parametrize("cut", [2, 40, 200])
def test_a_truncated_file(tmp_path, cut):
    path = made(tmp_path / "a.gguf", PAIR)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AdapterError, match=r"'math' \(a GGUF file\)"):
        read_any(path, "math")


def test_no_gguf_at_all(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(AdapterError, match="does not begin as a GGUF file does"):
        read_any(tmp_path / "a.gguf", "math")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2', and not a whole number"),
        ({"num_attention_heads": [4]}, r"num_attention_heads=\[4\], and not a whole number"),
        ({"num_attention_heads": None}, "does not say num_attention_heads"),
        ({"num_attention_heads": 5}, "the 32 rows of .*q_proj' are not those of 5 heads"),
    ],
)
def test_a_base_that_says_something_else(llama: Beast, tmp_path, changed, words):
    base = tmp_path / "base"
    shutil.copytree(llama.folder, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changed))
    made = samerge.convert_adapter(llama.adapters["math"], "gguf", base, progress=False)
    with pytest.raises(SamergeError, match=words):
        made.save(tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
