"""Every quantised format against its own library: the base as samerge reads it, and as the library dequantises it.

    pip install bitsandbytes hqq compressed-tensors torchao termcolor loguru
    python benchmarks/quantised_bases.py

The package's tests need none of these libraries: they hold naive decoders, written from the formats' definitions. This
is the check that the definitions are right. A library that is not installed is reported as such. Writes
benchmarks/results/quantised_bases.json.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samerge.weights import FolderSource, ModelSource, WeightSource
from samerge.weights.live_model import ModelSource as LiveSource

RESULTS = Path(__file__).parent / "results" / "quantised_bases.json"
CASES: dict[str, tuple[str, Callable[[], float]]] = {}


def case(name: str, library: str) -> Callable[[Callable[[], float]], Callable[[], float]]:
    def register(function: Callable[[], float]) -> Callable[[], float]:
        CASES[name] = (library, function)
        return function

    return register


def folder(tensors: dict[str, Tensor], quantization: dict[str, Any]) -> WeightSource:
    where = Path(tempfile.mkdtemp())
    (where / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": quantization}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, where / "model.safetensors")
    return FolderSource(where)


def error(source: WeightSource, name: str, expected: Tensor) -> float:
    """The largest difference over tiles of odd heights, relative to the largest entry."""
    assert source.shapes[name] == tuple(expected.shape), (source.shapes[name], expected.shape)
    worst = 0.0
    for start in range(0, expected.shape[0], 13):
        tile = source.read(name, start, start + 13).float()
        worst = max(worst, float((tile - expected[start : start + 13].float()).abs().max()))
    return worst / float(expected.float().abs().max())


def weight(rows: int = 96, columns: int = 256) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


class Model(nn.Module):
    """A model of one layer, as a library leaves it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def bnb4(kind: str, double: bool, live: bool, columns: int = 256) -> float:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        columns, 96, bias=False, quant_type=kind, compress_statistics=double, compute_dtype=torch.float32
    )
    layer.weight = bnb.nn.Params4bit(
        weight(96, columns), requires_grad=False, quant_type=kind, compress_statistics=double
    )
    layer = layer.to("cpu")
    expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if live:
        return error(ModelSource(Model(layer)), "layer.weight", expected)
    tensors = {f"layer.{key}": value for key, value in layer.state_dict().items()}
    return error(folder(tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}), "layer.weight", expected)


for kind in ("nf4", "fp4"):
    for double in (False, True):
        for live in (False, True):
            label = f"bitsandbytes {kind}{' double' if double else ''} {'live' if live else 'folder'}"
            case(label, "bitsandbytes")(lambda k=kind, d=double, v=live: bnb4(k, d, v))
case("bitsandbytes nf4 folder, blocks across rows", "bitsandbytes")(lambda: bnb4("nf4", True, False, 72))


def bnb8(live: bool) -> float:
    import bitsandbytes as bnb

    codes, scale, _ = bnb.functional.int8_vectorwise_quant(weight().half())
    expected = bnb.functional.int8_vectorwise_dequant(codes, scale)
    if not live:
        tensors = {"layer.weight": codes, "layer.SCB": scale, "layer.weight_format": torch.tensor(0, dtype=torch.uint8)}
        return error(folder(tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True}), "layer.weight", expected)
    layer = bnb.nn.Linear8bitLt(256, 96, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight().half(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    layer(torch.randn(2, 256).half())
    return error(ModelSource(Model(layer)), "layer.weight", expected)


case("bitsandbytes int8 folder", "bitsandbytes")(lambda: bnb8(False))
case("bitsandbytes int8 live", "bitsandbytes")(lambda: bnb8(True))


def hqq(bits: int, axis: int, live: bool, as_float: bool = False) -> float:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis, view_as_float=as_float)
    inner = nn.Linear(256, 96, bias=False)
    inner.weight.data.copy_(weight())
    layer = HQQLinear(inner, settings, compute_dtype=torch.float32, device="cpu")
    expected = layer.dequantize()
    if live:
        return error(ModelSource(Model(layer)), "layer.weight", expected)
    layer.encoded_state_dict = True
    tensors = {f"layer.{key}": value for key, value in layer.state_dict().items() if isinstance(value, Tensor)}
    return error(folder(tensors, {"quant_method": "hqq"}), "layer.weight", expected)


for bits in (8, 4, 3, 2, 1):
    for axis in (0, 1):
        case(f"hqq {bits} bits axis {axis} folder", "hqq")(lambda b=bits, a=axis: hqq(b, a, False))
case("hqq 4 bits viewed as float folder", "hqq")(lambda: hqq(4, 1, False, as_float=True))
case("hqq 4 bits live", "hqq")(lambda: hqq(4, 1, True))


def torchao(config: str, **options: Any) -> float:
    from torchao import quantization

    layer = nn.Linear(256, 96, bias=False, dtype=torch.bfloat16)
    layer.weight.data.copy_(weight())
    model = Model(layer)
    quantization.quantize_(model, getattr(quantization, config)(**options))
    return error(LiveSource(model), "layer.weight", model.layer.weight.dequantize())


case("torchao int8 weights live", "torchao")(lambda: torchao("Int8WeightOnlyConfig"))
case("torchao int8 dynamic live", "torchao")(lambda: torchao("Int8DynamicActivationInt8WeightConfig"))
case("torchao float8 weights live", "torchao")(lambda: torchao("Float8WeightOnlyConfig"))
case("torchao intx 4 bits live", "torchao")(lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4))


def compressed(fmt: str, expected_format: str | None = None, **arguments: Any) -> float:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments)
    dense = weight()
    rows, columns = dense.shape
    size = args.group_size or 0
    strategy = str(getattr(args.strategy, "value", args.strategy))
    views = {
        "tensor": dense.reshape(1, 1, -1),
        "channel": dense[:, None, :],
        "group": dense.reshape(rows, -1, size or columns),
        "tensor_group": dense.reshape(rows, -1, size or columns),
    }
    if strategy == "block":
        high, wide = args.block_structure
        blocks = dense.reshape(rows // high, high, columns // wide, wide).transpose(1, 2).flatten(2)
    else:
        blocks = views[strategy]
    more = {}
    if strategy == "tensor_group":
        more["global_scale"] = torch.tensor([448.0 * 6 / float(dense.abs().max())])
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, **more)
    state = {"weight": dense, "weight_scale": scale}
    if not args.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    if more:
        state["weight_global_scale"] = more["global_scale"]
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(fmt)
    packed = compressor.compress(dict(state), scheme)
    expected = compressor.decompress(dict(packed), scheme)["weight"]
    tensors = {f"layer.{key}": value for key, value in packed.items() if isinstance(value, Tensor)}
    settings = {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "config_groups": {"group_0": {"weights": json.loads(args.model_dump_json())}},
    }
    return error(folder(tensors, settings), "layer.weight", expected)


INT = {"type": "int", "symmetric": True}
for bits in (4, 8, 3, 2):
    case(f"compressed-tensors pack-quantized {bits} bits, groups", "compressed-tensors")(
        lambda b=bits: compressed("pack-quantized", num_bits=b, strategy="group", group_size=64, **INT)
    )
case("compressed-tensors pack-quantized 4 bits, asymmetric groups", "compressed-tensors")(
    lambda: compressed("pack-quantized", num_bits=4, strategy="group", group_size=64, type="int", symmetric=False)
)
case("compressed-tensors pack-quantized 4 bits, rows", "compressed-tensors")(
    lambda: compressed("pack-quantized", num_bits=4, strategy="channel", **INT)
)
case("compressed-tensors int-quantized, rows", "compressed-tensors")(
    lambda: compressed("int-quantized", num_bits=8, strategy="channel", **INT)
)
case("compressed-tensors float-quantized, tensor", "compressed-tensors")(
    lambda: compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="tensor")
)
case("compressed-tensors float-quantized, rows", "compressed-tensors")(
    lambda: compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel")
)
case("compressed-tensors float-quantized, blocks", "compressed-tensors")(
    lambda: compressed(
        "float-quantized", num_bits=8, type="float", symmetric=True, strategy="block", block_structure=[32, 64]
    )
)
case("compressed-tensors nvfp4", "compressed-tensors")(
    lambda: compressed(
        "nvfp4-pack-quantized",
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype="torch.float8_e4m3fn",
    )
)
case("compressed-tensors mxfp4", "compressed-tensors")(
    lambda: compressed(
        "mxfp4-pack-quantized",
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="group",
        group_size=32,
        scale_dtype="torch.uint8",
    )
)


def file_of(package: str, path: str) -> Any:
    """One file of a library whose package does not import here (it asks for a GPU, or for an old transformers)."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = importlib.util.spec_from_file_location("loaded", Path(spec.submodule_search_locations[0]) / path)
    assert file is not None
    assert file.loader is not None
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module


@case("AWQ gemm", "autoawq")
def awq() -> float:
    library = file_of("awq", "utils/packing_utils.py")
    generator = torch.Generator().manual_seed(1)
    limits = -(2**31), 2**31 - 1
    qweight = torch.randint(*limits, (256, 96 // 8), dtype=torch.int32, generator=generator)
    qzeros = torch.randint(*limits, (4, 96 // 8), dtype=torch.int32, generator=generator)
    scales = torch.rand(4, 96, generator=generator)
    expected = library.dequantize_gemm(qweight, qzeros, scales, 4, 64).T
    tensors = {"layer.qweight": qweight, "layer.qzeros": qzeros, "layer.scales": scales}
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    return error(folder(tensors, settings), "layer.weight", expected)


def gptq(bits: int, act_order: bool) -> float:
    """What the library packs, and what its layer then makes of the unit vectors."""
    library = file_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")
    inner = nn.Linear(256, 96, bias=False)
    inner.weight.data.copy_(weight())
    groups = torch.arange(256) // 64
    groups = groups[torch.randperm(256, generator=torch.Generator().manual_seed(2))] if act_order else groups
    low = torch.stack([inner.weight.data[:, groups == g].amin(1) for g in range(4)], 1)
    high = torch.stack([inner.weight.data[:, groups == g].amax(1) for g in range(4)], 1)
    scales = (high - low) / (2**bits - 1)
    zeros = (-low / scales).round().clamp(1, 2**bits - 1)
    layer = library.QuantLinear(bits, 64, 256, 96, False, weight_dtype=torch.float32)
    layer.pack(inner, scales, zeros, groups.to(torch.int32))
    layer.autogptq_cuda_available = False
    expected = layer(torch.eye(256)).T.detach()
    tensors = {f"layer.{key}": value for key, value in layer.state_dict().items()}
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 64, "desc_act": act_order, "sym": False}
    return error(folder(tensors, settings), "layer.weight", expected)


for bits in (2, 3, 4, 8):
    case(f"GPTQ {bits} bits", "auto-gptq")(lambda b=bits: gptq(b, False))
case("GPTQ 4 bits, groups by importance", "auto-gptq")(lambda: gptq(4, True))


@case("transformers fp8 blocks", "transformers")
def fp8_blocks() -> float:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    dense = weight(256, 384)
    blocks = dense.reshape(2, 128, 3, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).reshape(256, 384).to(torch.float8_e4m3fn)
    expected = Fp8Dequantize(None)._dequantize_one(codes, scale)
    tensors = {"layer.weight": codes, "layer.weight_scale_inv": scale}
    return error(folder(tensors, {"quant_method": "fp8", "weight_block_size": [128, 128]}), "layer.weight", expected)


@case("transformers mxfp4 experts", "transformers")
def mxfp4() -> float:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 96, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 128, (3, 96, 4), dtype=torch.uint8, generator=generator)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    source = folder({"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales}, {"quant_method": "mxfp4"})
    stacks = [source.read("m.gate_up_proj", 0, 10**6, e) for e in range(3)]
    assert source.shapes["m.gate_up_proj"] == tuple(expected.shape)
    return float((torch.stack(stacks) - expected).abs().max() / expected.abs().max())


def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def main() -> None:
    results: dict[str, Any] = {}
    for name, (library, run) in CASES.items():
        found = installed(library)
        if found is None:
            outcome: dict[str, Any] = {"outcome": f"{library} is not installed"}
        else:
            try:
                outcome = {"outcome": "compared", "relative error": run(), "library": f"{library} {found}"}
            except Exception as problem:  # the library's own limits on this machine belong in the table
                outcome = {
                    "outcome": f"{type(problem).__name__}: {str(problem)[:300]}",
                    "library": f"{library} {found}",
                }
        results[name] = outcome
        print(f"{name:64} {outcome.get('relative error', outcome['outcome'])}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
