"""GGUF of every family in the table: names by the package's own map, rows in llama.cpp's order, read by its reader."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from alike import same_values
from peft import LoraConfig, get_peft_model
from torch import Tensor

import samerge
from samerge.adapters.formats.gguf_names import ARCHITECTURES
from samerge.adapters.formats.table import read_any
from samerge.errors import AdapterError, BaseModelError

gguf = pytest.importorskip("gguf")

SIZES = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
#: Family -> llama.cpp's architecture, where it is called otherwise.
ARCHITECTURE = {
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "glm": "chatglm",
    "hunyuan_v1_dense": "hunyuan-dense",
    "internlm3": "llama",
    "mistral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
}
#: What llama.cpp's converter calls `permute`: for the rotary embedding as its Llama has it.
PERMUTED = {"arcee", "granite", "internlm3", "llama", "mistral", "olmo", "smollm3"}


def trained(kind: str, folder: Path) -> dict[str, Tensor]:
    """A tiny base and an adapter of all its linear layers, saved; and the updates, by the layers' names."""
    torch.manual_seed(0)
    tiny = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**SIZES))
    tiny.save_pretrained(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(tiny, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights=False))
        peft.save_pretrained(folder / "adapter")
    layers = peft.base_model.model.named_modules()
    return {name: one.get_delta_weight("default").detach() for name, one in layers if hasattr(one, "lora_A")}


def halves_interleaved(delta: Tensor, heads: int) -> Tensor:
    """Row 2 i + j of a head is its row j d / 2 + i."""
    size = delta.shape[0] // heads
    rows = [h * size + j * (size // 2) + i for h in range(heads) for i in range(size // 2) for j in range(2)]
    return delta[rows]


def in_file(path: Path) -> tuple[dict[str, Tensor], Any]:
    reader = gguf.GGUFReader(path)
    tensors = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    stems = {name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {}
    for stem in stems:
        a, b = tensors[f"{stem}.lora_a"], tensors[f"{stem}.lora_b"]
        found[stem.removesuffix(".weight")] = alpha / a.shape[0] * b @ a
    return found, reader


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_familys_adapter(kind: str, tmp_path: Path) -> None:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    updates = trained(kind, tmp_path)
    made = samerge.convert_adapter(tmp_path / "adapter", "gguf", tmp_path / "base", progress=False)
    out = made.save(tmp_path / "adapter.gguf")
    found, reader = in_file(out)
    architecture = ARCHITECTURE.get(kind, kind)
    assert reader.fields["general.architecture"].contents() == architecture
    index = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(index, 2)
    known = {gguf.TENSOR_NAMES[tensor].format(bid=bid) for tensor in gguf.MODEL_TENSORS[index] for bid in range(2)}
    expected = {}
    for module, delta in updates.items():
        name = names.get_name(module)
        assert name in known, module
        if kind in PERMUTED and module.endswith(("q_proj", "k_proj")):
            delta = halves_interleaved(delta, 4 if module.endswith("q_proj") else 2)
        expected[name] = delta
    assert sorted(found) == sorted(expected)
    for name, delta in expected.items():
        same_values(found[name], delta, 1e-6, name)
    if kind == "phi3":  # q, k and v in one piece, as are gate and up
        assert {name.rpartition(".")[2] for name in found} == {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}
    again = read_any(out, "again")
    assert sorted(again.modules) == sorted(expected)
    back = samerge.convert_adapter(out, "peft", tmp_path / "base", progress=False)
    assert sorted(back.factors) == sorted(updates)
    for module, delta in updates.items():
        same_values(back.delta(module), delta, 1e-6, module)


def test_a_gguf_file_and_a_folder_merge_by_the_base(tmp_path: Path) -> None:
    updates = trained("llama", tmp_path)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    file = samerge.convert_adapter(folder, "gguf", base, progress=False).save(tmp_path / "a.gguf")
    merged = samerge.merge(base, [file, folder], weights=[1.0, -3.0], method="linear", progress=False)
    assert merged.format == "peft"
    for module, delta in updates.items():
        same_values(merged.delta(module), -2 * delta, 1e-5, module)
    again = samerge.merge(base, [file], weights=[2.0], method="linear", progress=False).save(tmp_path / "again")
    one, two = in_file(file)[0], in_file(again)[0]
    for name, delta in one.items():
        same_values(two[name], 2 * delta, 1e-5, name)


def test_llama_cpps_names_need_the_right_base(tmp_path: Path) -> None:
    trained("llama", tmp_path)
    file = samerge.convert_adapter(tmp_path / "adapter", "gguf", tmp_path / "base", progress=False).save(tmp_path / "a")
    alone = samerge.convert_adapter(file, "peft", progress=False)
    with pytest.raises(AdapterError, match=r"'blk\.0\.\w+' is named as llama.cpp does.*give base="):
        alone.save(tmp_path / "out")
    trained("qwen2", tmp_path / "other")
    words = r"'a' to the names of the base.*it is of llama.cpp's 'llama', and the base, llama.cpp's 'qwen2', is not"
    with pytest.raises(BaseModelError, match=words):
        samerge.merge(tmp_path / "other" / "base", [file], method="linear", progress=False)
