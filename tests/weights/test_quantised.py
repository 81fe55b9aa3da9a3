"""Quantised bases against naive decoders, written entry by entry from each format's definition."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_adapter, write_base
from torch import Tensor, nn

import samerge
from samerge.weights import FolderSource, ModelSource, WeightSource, read_tile
from samerge.weights.quantised.packing import bit_fields

OUT, INTO = 24, 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(*shape: int, bits: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**bits, shape, generator=generator(seed))


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=generator(seed)) + 0.5


def pack(values: list[int], bits: int) -> list[int]:
    """Integers packed densely into 32-bit words, signed: bit i of the stream is bit i % 32 of word i // 32."""
    stream = sum(value << (bits * i) for i, value in enumerate(values))
    words = [(stream >> (32 * k)) & 0xFFFFFFFF for k in range(math.ceil(len(values) * bits / 32))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def pack_rows(values: Tensor, bits: int) -> Tensor:
    return torch.tensor([pack(row, bits) for row in values.tolist()], dtype=torch.int32)


def source(tmp_path, tensors: dict[str, Tensor], quantization: dict | None, **config) -> WeightSource:
    config |= {"quantization_config": quantization} if quantization is not None else {}
    return FolderSource(write_base(tmp_path / "base", tensors, model_type="x", **config))


def assert_reads(found: WeightSource, expected: Tensor, name: str = "layer.weight", left: tuple[str, ...] = ()) -> None:
    """The only tensor is the weight, in its own shape, and any rows of it come out right."""
    assert set(found.shapes) == {name, *left}
    assert found.shapes[name] == tuple(expected.shape)
    assert found.dtype(name) == torch.float32
    for start, stop in ((0, expected.shape[0]), (0, 1), (3, 10), (expected.shape[0] - 1, expected.shape[0] + 5)):
        rows = found.read(name, start, stop)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, expected[start:stop].float(), rtol=1e-6, atol=1e-7)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_bit_fields(bits, values):
    values = [value % 2**bits for value in values]
    packed = torch.tensor([pack(values, bits)], dtype=torch.int32)
    assert bit_fields(packed, bits, len(values)).tolist() == [values]


# bitsandbytes ---------------------------------------------------------------------------------------------------------


def four_bits(nested: bool, out: int = OUT, into: int = INTO, block: int = 64) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a 4-bit layer, and its weight."""
    codes, table = integers(out * into, bits=4).tolist(), uniform(16) - 1
    count = math.ceil(out * into / block)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": [out, into]}
    tensors = {"quant_map": table}
    if nested:
        inner, outer_table, outer = integers(count, bits=8, seed=2), uniform(256), uniform(math.ceil(count / 4))
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.25}
        absmax = [float(outer_table[inner[b]]) * float(outer[b // 4]) + 0.25 for b in range(count)]
        tensors |= {"absmax": inner.to(torch.uint8), "nested_absmax": outer, "nested_quant_map": outer_table}
    else:
        tensors["absmax"] = uniform(count, seed=3)
        absmax = tensors["absmax"].tolist()
    even = [*codes, 0][: len(codes) + len(codes) % 2]
    packed = [high << 4 | low for high, low in zip(even[::2], even[1::2], strict=True)]
    tensors["quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    named = {f"layer.weight.{key}": value for key, value in tensors.items()}
    named["layer.weight"] = torch.tensor(packed, dtype=torch.uint8)[:, None]
    weight = torch.tensor([float(table[code]) * absmax[i // block] for i, code in enumerate(codes)])
    return named, weight.reshape(out, into)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("out", "into", "block"), [(24, 32, 64), (13, 7, 16), (12, 40, 64)])
def test_bitsandbytes_four_bits(tmp_path, nested, out, into, block):
    tensors, weight = four_bits(nested, out, into, block)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert_reads(source(tmp_path, tensors | {"norm.weight": torch.ones(3)}, settings), weight, left=("norm.weight",))


def test_bitsandbytes_stored_as_bfloat16(tmp_path):
    tensors, weight = four_bits(nested=True)
    tensors["layer.weight"] = tensors["layer.weight"].reshape(-1).view(torch.bfloat16)[:, None]
    assert_reads(source(tmp_path, tensors, {"load_in_4bit": True}), weight)


def test_bitsandbytes_without_a_configuration(tmp_path):
    tensors, weight = four_bits(nested=False)
    assert_reads(source(tmp_path, tensors, None), weight)


def test_bitsandbytes_eight_bits(tmp_path):
    codes = integers(OUT, INTO, bits=8) - 128
    scale = uniform(OUT)
    tensors = {"layer.weight": codes.to(torch.int8), "layer.SCB": scale, "layer.bias": torch.ones(OUT)}
    tensors["layer.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    found = source(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert_reads(found, codes * scale[:, None] / 127, left=("layer.bias",))


def test_bitsandbytes_in_a_layout_of_its_kernels(tmp_path):
    tensors = {"layer.weight": torch.zeros(OUT, INTO, dtype=torch.int8), "layer.SCB": uniform(OUT)}
    tensors["layer.weight_format"] = torch.tensor(1, dtype=torch.uint8)
    with pytest.raises(samerge.BaseModelError, match=r"bitsandbytes\): layer.weight is in a layout of its GPU kernels"):
        source(tmp_path, tensors, {"quant_method": "bitsandbytes"})


# GPTQ and AWQ ---------------------------------------------------------------------------------------------------------


def gptq(bits: int, groups: list[int], count: int, offset: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    codes = integers(OUT, INTO, bits=bits)
    zeros = integers(count, OUT, bits=bits, seed=2).clamp_min(offset)
    scales = uniform(count, OUT)
    weight = torch.zeros(OUT, INTO)
    for o in range(OUT):
        for i in range(INTO):
            weight[o, i] = float(codes[o, i] - zeros[groups[i], o]) * float(scales[groups[i], o])
    tensors = {
        "layer.qweight": pack_rows(codes, bits).T,
        "layer.qzeros": pack_rows(zeros - offset, bits),
        "layer.scales": scales,
        "layer.g_idx": torch.tensor(groups, dtype=torch.int32),
    }
    return tensors, weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path, bits):
    groups = [i // 8 for i in range(INTO)]
    tensors, weight = gptq(bits, groups, 4)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 8}
    assert_reads(source(tmp_path / "a", tensors, settings), weight)
    del tensors["layer.g_idx"]
    assert_reads(source(tmp_path / "b", tensors, settings), weight)


def test_gptq_with_groups_by_importance(tmp_path):
    groups = [(7 * i) % 4 for i in range(INTO)]
    tensors, weight = gptq(4, groups, 4)
    assert_reads(source(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 8}), weight)


def test_gptq_second_format_and_one_group(tmp_path):
    tensors, weight = gptq(4, [0] * INTO, 1, offset=0)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"}
    assert_reads(source(tmp_path, tensors, settings), weight)


def awq() -> tuple[dict[str, Tensor], Tensor]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros, scales = integers(INTO, OUT, bits=4), integers(4, OUT, bits=4, seed=2), uniform(4, OUT)
    weight = torch.zeros(OUT, INTO)
    for o in range(OUT):
        for i in range(INTO):
            weight[o, i] = float(codes[i, o] - zeros[i // 8, o]) * float(scales[i // 8, o])

    def shuffled(values: Tensor) -> Tensor:
        """Field k of each word holds output order[k] of its eight."""
        return pack_rows(values.reshape(len(values), -1, 8)[..., order].reshape(len(values), -1), 4)

    return {"layer.qweight": shuffled(codes), "layer.qzeros": shuffled(zeros), "layer.scales": scales}, weight


def test_awq(tmp_path):
    tensors, weight = awq()
    settings = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True}
    assert_reads(source(tmp_path, tensors, settings), weight)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"\(awq\): AWQ with bits=4 and version='gemv'"),
        ({"quant_method": "gptq", "bits": 5}, r"\(gptq\): GPTQ with bits=5"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, r"checkpoint_format='marlin'"),
    ],
)
def test_variants_that_are_not_known(tmp_path, settings, says):
    with pytest.raises(samerge.BaseModelError, match=rf"{says}.*give the unquantised base"):
        source(tmp_path, awq()[0], settings)


# 8-bit floats ---------------------------------------------------------------------------------------------------------


def eight(*shape: int) -> Tensor:
    return (torch.randn(shape, generator=generator()) * 50).to(torch.float8_e4m3fn)


def test_float8_without_scales_is_numbers(tmp_path):
    found = source(tmp_path, {"layer.weight": eight(OUT, INTO)}, None)
    assert torch.equal(found.read("layer.weight", 0, OUT).float(), eight(OUT, INTO).float())


@pytest.mark.parametrize(("out", "into"), [(24, 32), (20, 30)])
@pytest.mark.parametrize("live", [False, True])
def test_float8_in_blocks(tmp_path, out, into, live):
    scale = uniform(math.ceil(out / 8), math.ceil(into / 16))
    codes = eight(out, into)
    weight = torch.zeros(out, into)
    for o in range(out):
        for i in range(into):
            weight[o, i] = float(codes[o, i].float()) * float(scale[o // 8, i // 16])
    settings = {"quant_method": "fp8", "weight_block_size": [8, 16]}
    if live:
        model = nn.Module()
        model.config = Config(settings)
        model.layer = nn.Module()
        model.layer.weight = nn.Parameter(codes, requires_grad=False)
        model.layer.weight_scale_inv = nn.Parameter(scale)
        assert_reads(ModelSource(model), weight)
    else:
        assert_reads(source(tmp_path, {"layer.weight": codes, "layer.weight_scale_inv": scale}, settings), weight)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), uniform(OUT, 1)])
@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8", "modelopt"])
def test_float8_with_one_scale_or_one_a_row(tmp_path, scale, method):
    tensors = {"layer.weight": eight(OUT, INTO), "layer.weight_scale": scale, "layer.input_scale": torch.tensor(1.0)}
    assert_reads(source(tmp_path, tensors, {"quant_method": method}), eight(OUT, INTO).float() * scale)


def test_a_stack_of_float8_experts(tmp_path):
    codes, scale = eight(3, OUT, INTO), uniform(3, 3, 2)
    tensors = {"experts.up": codes, "experts.up_scale_inv": scale}
    found = source(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [8, 16]})
    weight = codes.float() * scale.repeat_interleave(8, 1).repeat_interleave(16, 2)
    assert found.shapes == {"experts.up": (3, OUT, INTO)}
    for expert in range(3):
        torch.testing.assert_close(found.read("experts.up", 5, 99, expert), weight[expert, 5:])
    torch.testing.assert_close(found.read("experts.up", 1, 3), weight[1:])


def test_scales_that_do_not_fit(tmp_path):
    tensors = {"layer.weight": eight(OUT, INTO), "layer.weight_scale_inv": uniform(5, 2)}
    with pytest.raises(
        samerge.BaseModelError, match=r"scales of shape \(5, 2\) do not fit a weight of shape \(24, 32\)"
    ):
        source(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [8, 16]})


def test_packed_integers_under_float8(tmp_path):
    tensors = {"layer.weight": torch.zeros(OUT, INTO, dtype=torch.int8), "layer.weight_scale_inv": uniform(3, 2)}
    with pytest.raises(samerge.BaseModelError, match=r"layer\.weight is int8 with scales beside it; only 8-bit floats"):
        source(tmp_path, tensors, {"quant_method": "fp8"})


# compressed-tensors, MXFP4, HQQ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", ["groups", "rows", "zeros", "importance"])
def test_compressed_words(tmp_path, bits, kind):
    count = 1 if kind == "rows" else 4
    codes, scale, middle = integers(OUT, INTO, bits=bits), uniform(OUT, count), 2 ** (bits - 1)
    zeros = integers(OUT, count, bits=bits, seed=2)
    groups = [(5 * i) % 4 if kind == "importance" else i * count // INTO for i in range(INTO)]
    weight = torch.zeros(OUT, INTO)
    for o in range(OUT):
        for i in range(INTO):
            zero = int(zeros[o, groups[i]]) - middle if kind == "zeros" else 0
            weight[o, i] = (int(codes[o, i]) - middle - zero) * float(scale[o, groups[i]])
    tensors = {
        "layer.weight_packed": pack_rows(codes, bits),
        "layer.weight_scale": scale,
        "layer.weight_shape": torch.tensor([OUT, INTO]),
    }
    if kind == "zeros":
        tensors["layer.weight_zero_point"] = pack_rows(zeros.T, bits).T
    if kind == "importance":
        tensors["layer.weight_g_idx"] = torch.tensor(groups, dtype=torch.int32)
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    assert_reads(source(tmp_path, tensors, settings), weight)


@pytest.mark.parametrize("kind", ["int8", "int8 with zeros", "float8", "blocks"])
def test_compressed_bytes(tmp_path, kind):
    codes = eight(OUT, INTO) if kind in ("float8", "blocks") else (integers(OUT, INTO, bits=8) - 128).to(torch.int8)
    scale = uniform(3, 2) if kind == "blocks" else uniform(OUT, 1)
    tensors = {"layer.weight": codes, "layer.weight_scale": scale, "layer.input_scale": torch.ones(1)}
    zeros = torch.zeros(OUT, 1)
    if kind == "int8 with zeros":
        zeros = torch.arange(OUT)[:, None].float()
        tensors["layer.weight_zero_point"] = zeros.to(torch.int8)
    spread = scale.repeat_interleave(8, 0).repeat_interleave(16, 1) if kind == "blocks" else scale
    settings = {"quant_method": "compressed-tensors", "format": "naive-quantized"}
    assert_reads(source(tmp_path, tensors, settings), (codes.float() - zeros) * spread)


@pytest.mark.parametrize("method", ["compressed-tensors", "fp8", None])
def test_weights_that_were_dequantised_already_are_not_scaled_again(method):
    """compressed-tensors decompresses a live model's weights at its first forward pass and leaves their scales."""
    model = nn.Module()
    model.config = Config({"quant_method": method} if method else None)
    model.layer = nn.Module()
    model.layer.weight = nn.Parameter(uniform(OUT, INTO))
    model.layer.weight_scale = nn.Parameter(uniform(OUT, 1, seed=4))
    found = ModelSource(model)
    assert torch.equal(found.read("layer.weight", 0, OUT), uniform(OUT, INTO))


VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_compressed_four_bit_floats(tmp_path, kind):
    into, size = 64, 16 if kind == "nvfp4" else 32
    codes = integers(OUT, into, bits=4)
    if kind == "nvfp4":
        scale, factor = uniform(OUT, into // size).to(torch.float8_e4m3fn), torch.tensor([4.0])
        numbers = scale.float() / 4
    else:
        scale = integers(OUT, into // size, bits=3).to(torch.uint8) + 124
        numbers = 2.0 ** (scale.float() - 127)
    weight = torch.zeros(OUT, into)
    for o in range(OUT):
        for i in range(into):
            weight[o, i] = VALUES[codes[o, i]] * float(numbers[o, i // size])
    tensors = {
        "layer.weight_packed": (codes[:, 1::2] << 4 | codes[:, ::2]).to(torch.uint8),
        "layer.weight_scale": scale,
    }
    tensors |= {"layer.weight_global_scale": factor} if kind == "nvfp4" else {}
    assert_reads(source(tmp_path, tensors, {"quant_method": "compressed-tensors"}), weight)


def test_a_sparse_format(tmp_path):
    tensors = {"layer.bitmask": torch.zeros(3, 4, dtype=torch.uint8), "layer.weight_scale": torch.ones(3)}
    settings = {"quant_method": "compressed-tensors", "format": "sparse-24-bitmask"}
    with pytest.raises(samerge.BaseModelError, match=r"format='sparse-24-bitmask', a sparse one"):
        source(tmp_path, tensors, settings)


def test_expert_stacks_in_mxfp4(tmp_path):
    codes, scale = integers(2, OUT, 3, 32, bits=4), integers(2, OUT, 3, bits=3).to(torch.uint8) + 124
    blocks = (codes[..., 1::2] << 4 | codes[..., ::2]).to(torch.uint8)
    weight = torch.tensor(VALUES)[codes] * (2.0 ** (scale.float() - 127))[..., None]
    weight = weight.reshape(2, OUT, 96).transpose(1, 2)  # the model's stack is (experts, in, out)
    tensors = {"experts.up_blocks": blocks, "experts.up_scales": scale}
    found = source(tmp_path, tensors, {"quant_method": "mxfp4"})
    assert found.shapes == {"experts.up": (2, 96, OUT)}
    torch.testing.assert_close(found.read("experts.up", 7, 50, 1), weight[1, 7:50])
    torch.testing.assert_close(found.read("experts.up", 0, 2), weight)


def text(value: str) -> Tensor:
    return torch.tensor([ord(letter) for letter in value], dtype=torch.uint8)


@pytest.mark.parametrize(("bits", "packing", "fields"), [(8, "8bit_u8", 1), (4, "4bit_u8", 2), (2, "2bit_u8", 4)])
def test_hqq(tmp_path, bits, packing, fields):
    size = 16
    codes, rows = integers(OUT * INTO // size, size, bits=bits), OUT * INTO // size // fields
    scale, zero = uniform(OUT * INTO // size, 1), uniform(OUT * INTO // size, 1, seed=5)
    packed = sum(codes[f * rows : (f + 1) * rows] << (bits * (fields - 1 - f)) for f in range(fields))
    tensors = {"W_q": packed.to(torch.uint8), "scale": scale, "zero": zero, "shape": torch.tensor([OUT, INTO])}
    tensors |= {"packing": text(packing), "nbits": torch.tensor(bits, dtype=torch.int32), "axis": torch.tensor(1)}
    found = source(tmp_path, {f"layer.{key}": value for key, value in tensors.items()}, {"quant_method": "hqq"})
    assert_reads(found, ((codes - zero) * scale).reshape(OUT, INTO))


# What is never read as numbers ----------------------------------------------------------------------------------------


def test_an_unknown_format(tmp_path):
    with pytest.raises(
        samerge.BaseModelError, match=r"quant_method='aqlm'\), a format that cannot be read; known: awq"
    ):
        source(tmp_path, {"layer.weight": uniform(3, 3)}, {"quant_method": "aqlm"})


@pytest.mark.parametrize("holder", ["compression_config", "text_config"])
def test_a_configuration_elsewhere(tmp_path, holder):
    settings = {"quant_method": "spqr"}
    config = {holder: {"quantization_config": settings} if holder == "text_config" else settings}
    with pytest.raises(samerge.BaseModelError, match="quant_method='spqr'"):
        source(tmp_path, {"layer.weight": uniform(3, 3)}, None, **config)


def test_a_configuration_that_names_no_format(tmp_path):
    with pytest.raises(samerge.BaseModelError, match="says that it is quantised"):
        source(tmp_path, {"layer.weight": uniform(3, 3)}, {"bits": 4})


@pytest.mark.parametrize(
    ("method", "hint"), [("gptq", "give the unquantised"), ("torchao", "install torchao"), ("bitsandbytes", "give the")]
)
def test_a_format_that_no_weight_is_in(tmp_path, method, hint):
    with pytest.raises(samerge.BaseModelError, match=rf"no weight is in that format .*; .*{hint}"):
        source(tmp_path, {"layer.weight": uniform(3, 3)}, {"quant_method": method, "bits": 4})


@pytest.mark.parametrize(
    "tensors",
    [
        {"layer.weight": torch.zeros(3, 4, dtype=torch.uint8)},
        {"layer.weight": torch.zeros(3, 4, dtype=torch.int8)},
        {"layer.qweight": torch.zeros(3, 4, dtype=torch.int32)},
        {"layer.weight_packed": torch.zeros(3, 4, dtype=torch.int32)},
    ],
)
def test_packed_weights_without_a_configuration(tmp_path, tensors):
    with pytest.raises(samerge.BaseModelError, match=r"layer\.\w+ \(3, 4\) holds packed values \(u?int\d+\)"):
        source(tmp_path, tensors, None)


def test_integers_are_never_tiles(tmp_path):
    found = source(tmp_path, {"experts.up": torch.zeros(3, 4, dtype=torch.uint8)}, None)
    with pytest.raises(samerge.BaseModelError, match=r"experts.up \(3, 4\) holds integers \(uint8\)"):
        read_tile(found, "experts.up", None, 0, 2, torch.device("cpu"), torch.float32)


def test_integer_parameters_of_a_live_model():
    model = nn.Module()
    model.up = nn.Parameter(torch.zeros(3, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(samerge.BaseModelError, match=r"up \(3, 4\) holds packed values \(uint8\)"):
        ModelSource(model)


def test_integer_buffers_are_left_alone(tmp_path):
    tensors = {"layer.weight": uniform(3, 3), "position_ids": torch.arange(4)[None]}
    assert set(source(tmp_path, tensors, None).shapes) == set(tensors)


# Live -----------------------------------------------------------------------------------------------------------------


class Config:
    """A configuration as transformers has it."""

    def __init__(self, quantization: dict | None, path: str = "", **more) -> None:
        self.quantization, self.name_or_path, self.more = quantization, path, more

    def to_dict(self) -> dict:
        return {**self.more, **({"quantization_config": self.quantization} if self.quantization else {})}


class Params4bit(nn.Parameter):
    """Stands for bitsandbytes' class of that name: bytes, and a state that writes itself as the files have it."""


class State:
    def __init__(self, tensors: dict[str, Tensor], **more) -> None:
        self.tensors = tensors
        self.__dict__.update(more)

    def as_dict(self, packed: bool) -> dict[str, Tensor]:
        assert packed
        return self.tensors


def bitsandbytes_model() -> tuple[nn.Module, Tensor]:
    tensors, weight = four_bits(nested=True)
    model = nn.Module()
    model.config = Config({"quant_method": "bitsandbytes", "load_in_4bit": True})
    model.layer = nn.Linear(INTO, OUT, bias=False)
    model.layer.weight = Params4bit(tensors.pop("layer.weight"), requires_grad=False)
    model.layer.weight.quant_state = State({key.removeprefix("layer.weight."): v for key, v in tensors.items()})
    return model, weight


def test_a_live_four_bit_layer():
    model, weight = bitsandbytes_model()
    assert_reads(ModelSource(model), weight)


def test_a_live_four_bit_layer_ordered_for_the_cpu():
    """Block of 32 rows, two columns: 32 bytes; low halves are its first 32 entries, high halves its last 32."""
    codes, table, absmax = integers(64, 8, bits=4), uniform(16), uniform(2, 64).to(torch.bfloat16)
    packed = []
    for block in range(2):
        for pair in range(4):
            entries = codes[32 * block : 32 * block + 32, 2 * pair : 2 * pair + 2].reshape(-1)
            packed += (entries[32:] << 4 | entries[:32]).tolist()
    model, _ = bitsandbytes_model()
    model.layer.weight = Params4bit(torch.tensor(packed, dtype=torch.uint8).reshape(64, 4), requires_grad=False)
    model.layer.weight.quant_state = State({}, packing_format_for_cpu=True, shape=(64, 8), absmax=absmax, code=table)
    expected = torch.tensor(
        [[float(table[codes[o, i]]) * float(absmax[i // 4, o]) for i in range(8)] for o in range(64)]
    )
    assert_reads(ModelSource(model), expected)


class Opaque(Tensor):
    """A tensor that knows how to dequantise itself, as torchao's do."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: float) -> Opaque:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, scale: float) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]
        raise NotImplementedError(func)

    def dequantize(self) -> Tensor:
        return self.codes.float() * self.scale


class Broken(Opaque):
    def dequantize(self) -> Tensor:
        raise NotImplementedError("no kernel for the CPU")


def opaque_model(kind: type[Opaque], library: str, monkeypatch) -> nn.Module:
    monkeypatch.setattr(kind, "__module__", library)
    model = nn.Module()
    model.config = Config({"quant_method": "torchao"})
    model.layer = nn.Module()
    model.layer.register_parameter("weight", nn.Parameter(kind(integers(OUT, INTO, bits=4), 0.5), requires_grad=False))
    return model


def test_a_live_layer_that_dequantises_itself(monkeypatch):
    model = opaque_model(Opaque, "torchao.quantization", monkeypatch)
    assert_reads(ModelSource(model), integers(OUT, INTO, bits=4) * 0.5)


def test_a_live_layer_whose_library_cannot(monkeypatch):
    found = ModelSource(opaque_model(Broken, "torchao.quantization", monkeypatch))
    with pytest.raises(samerge.BaseModelError, match=r"cannot dequantise it on cpu: no kernel for the CPU"):
        found.read("layer.weight", 0, 1)


def test_a_live_layer_of_an_unknown_class(monkeypatch):
    with pytest.raises(samerge.BaseModelError, match=r"is a strange.library.Opaque, which is not known"):
        ModelSource(opaque_model(Opaque, "strange.library", monkeypatch))


def gptq_model(path: str) -> nn.Module:
    """A layer as GPTQ's libraries leave it: buffers, in an order that only its kernels know."""
    model = nn.Module()
    model.config = Config({"quant_method": "gptq", "bits": 4, "group_size": 8}, path)
    model.layer = nn.Module()
    for name in ("qweight", "qzeros", "scales"):
        model.layer.register_buffer(name, torch.zeros(4, 4))
    return model


def test_a_live_gptq_layer_is_read_from_its_checkpoint(tmp_path):
    tensors, weight = gptq(4, [i // 8 for i in range(INTO)], 4)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    folder = write_base(tmp_path, tensors, model_type="x", quantization_config=settings)
    assert_reads(ModelSource(gptq_model(folder)), weight)


def test_a_live_gptq_layer_without_a_checkpoint():
    with pytest.raises(samerge.BaseModelError, match=r"format for its kernels alone, and the model does not name its"):
        ModelSource(gptq_model(""))


def test_a_merge_on_a_quantised_base_equals_one_on_the_dense_base(tmp_path):
    """Through the whole of merge, with saliency over the base's own flow."""
    tensors, weight = four_bits(nested=True)
    quantised = write_base(tmp_path / "q", tensors, model_type="x", quantization_config={"load_in_4bit": True})
    dense = write_base(tmp_path / "d", {"layer.weight": weight}, model_type="x")
    adapters = {}
    for number in range(2):
        A, B = (torch.randn(s, generator=generator(number)) for s in ((4, INTO), (OUT, 4)))
        adapters[f"a{number}"] = write_adapter(tmp_path / f"a{number}", {"layer": (A, B)})
    merged = [
        samerge.merge(base, adapters, method="saliency", density=0.5, connectivity="local", progress=False)
        for base in (quantised, dense)
    ]
    torch.testing.assert_close(merged[0].delta("layer"), merged[1].delta("layer"))
