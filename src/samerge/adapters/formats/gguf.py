"""GGUF, llama.cpp's: one file, `general.type = adapter`, by the package `gguf` (samerge[gguf]).

| tensor | shape |
|---|---|
| `<tensor>.weight.lora_a` | (r, in) |
| `<tensor>.weight.lora_b` | (out, r) |

There is one alpha for all, and llama.cpp scales by alpha / r, so that every module is written with one rank. The names
are llama.cpp's, which the package makes of the base's; which architecture a base is, and whether llama.cpp keeps the
rows of q and k in another order, says the table below. A file that is read keeps llama.cpp's names and order: such
files merge with each other, and are written back as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.atomic import atomic_file
from samerge.adapters.describe import Stored, described
from samerge.adapters.formats.components import of_one_model
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.formats.header import RECORD_FIELD, record_text
from samerge.adapters.formats.pairs import refuse_more
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.names import Target
from samerge.errors import AdapterError, BaseModelError, OptionError
from samerge.graph.naming import told_number
from samerge.linalg.factors import pad
from samerge.weights.untrusted import Origin, open_regular, sha256

TITLE = "a GGUF file"
#: Family of transformers -> llama.cpp's architecture, and whether it keeps the rows of q and k interleaved; each as
#: llama.cpp's own converter has it (benchmarks/readers.py).
ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "apertus": ("apertus", False),
    "arcee": ("arcee", True),
    "cohere": ("command-r", False),
    "cohere2": ("cohere2", False),
    "ernie4_5": ("ernie4_5", False),
    "exaone4": ("exaone4", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "glm": ("chatglm", False),
    "glm4": ("glm4", False),
    "granite": ("granite", True),
    "hunyuan_v1_dense": ("hunyuan-dense", False),
    "internlm3": ("llama", True),
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "nemotron": ("nemotron", False),
    "olmo": ("olmo", True),
    "olmo2": ("olmo2", False),
    "olmo3": ("olmo2", False),
    "phi": ("phi2", False),
    "phi3": ("phi3", False),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "seed_oss": ("seed_oss", False),
    "smollm3": ("smollm3", True),
    "stablelm": ("stablelm", False),
    "starcoder2": ("starcoder2", False),
}
#: llama.cpp's name of a module.
_MODULE = r"blk\.\d+\.\w+|output"
_KEY = re.compile(rf"(?P<module>{_MODULE})\.weight\.(?P<part>lora_[ab])")
_ALPHA, _RECORD, _ARCHITECTURE = "adapter.lora.alpha", f"{RECORD_FIELD}.record", "general.architecture"
_FIELDS = (_ALPHA, _ARCHITECTURE, _RECORD, "general.type", "adapter.type")


def reads(place: Place) -> bool:
    """Whether the file is called so."""
    return place.path.suffix == ".gguf"


def package(doing: str) -> ModuleType:
    """The package `gguf`.

    Args:
        doing: what it is wanted for, for errors.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise OptionError(f"{doing}: GGUF files need the package gguf; install samerge[gguf]") from error
    return gguf  # type: ignore[no-any-return]


def open_file(place: Place) -> Adapter:
    """The adapter in a file, under llama.cpp's names.

    Raises:
        AdapterError: the file is broken, or no LoRA.
        OptionError: the package is not installed.
    """
    origin = place.origin(TITLE)
    reader, fields = _opened(place.path, origin)
    kind = {name: fields[name] for name in ("general.type", "adapter.type") if name in fields}
    if kind != {"general.type": "adapter", "adapter.type": "lora"}:
        raise origin.refusal(
            f"{place.path.name} is no LoRA: its general.type and adapter.type are {list(kind.values())}"
        )
    alpha = fields.get(_ALPHA)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise origin.refusal(f"{_ALPHA} is {alpha!r}; it must be a finite number")
    parts: dict[str, dict[str, Any]] = {}
    for tensor in reader.tensors:
        match = _KEY.fullmatch(tensor.name)
        if match is None or tensor.tensor_type.name not in ("F32", "F16", "BF16"):
            raise origin.refusal(
                f"{place.path.name} also holds {tensor.name[:80]!r} ({tensor.tensor_type.name}), which is no factor of "
                f"a linear layer in 16 or 32 bits; convert the adapter again, to f16 or f32"
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor
    modules: dict[str, AdaptedModule] = {}
    for module, pair in sorted(parts.items()):
        if set(pair) != {"lora_a", "lora_b"}:
            raise origin.refusal(f"module {module!r} has {sorted(pair)}, expected lora_a and lora_b")
        shapes = tuple(tuple(int(size) for size in reversed(pair[part].shape)) for part in ("lora_a", "lora_b"))
        dtype = torch.float32 if pair["lora_a"].tensor_type.name == "F32" else torch.float16
        stored = Stored((shapes[0], shapes[1]), dtype, False, partial(_read, pair["lora_a"], pair["lora_b"]))
        rank = shapes[0][0] if shapes[0] else 0
        scale = alpha / rank if alpha and rank else 1.0  # as llama.cpp has it
        modules.update(described(place.name, Target("linear", module), {}, stored, scale, False, rank))
    if not modules:
        raise origin.refusal(f"{place.path.name} holds no tensors")
    return Adapter(
        place.name,
        place.source,
        {},
        modules,
        sha256(place.path, origin),
        format=FORMAT.name,
        metadata={_ARCHITECTURE: str(fields.get(_ARCHITECTURE, ""))},
        weights_name=place.path.name,
    )


def _opened(path: Path, origin: Origin) -> tuple[Any, dict[str, Any]]:
    """The package's reader of a file, and the fields of it that say something here."""
    with open_regular(path, origin) as file:
        if file.read(4) != b"GGUF":
            raise origin.refusal(f"{path.name} does not begin as a GGUF file does; fetch it again")
    gguf = package(origin.doing)
    try:
        reader = gguf.GGUFReader(path)
        return reader, {name: reader.fields[name].contents() for name in _FIELDS if name in reader.fields}
    except Exception as error:  # of many kinds, as the file is broken here or there
        told = " ".join(str(error).split())[:200]
        raise origin.refusal(f"{path.name} is broken ({type(error).__name__}: {told}); fetch it again") from error


def _read(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    return _tensor(a), _tensor(b)


def _tensor(stored: Any) -> Tensor:
    shape = tuple(int(size) for size in reversed(stored.shape))
    if stored.tensor_type.name == "BF16":
        return torch.from_numpy(stored.data.copy()).view(torch.bfloat16).reshape(shape).float()
    return torch.from_numpy(stored.data.copy()).reshape(shape)


def recorded(path: Path, origin: Origin) -> str | None:
    """The text of the record of a merge in a file; None where there is none."""
    text = _opened(path, origin)[1].get(_RECORD)
    return None if text is None else str(text)


def write(content: Content, path: Path, overwrite: bool) -> Path:
    """Write one file: float16 where the factors are, float32 otherwise, since bfloat16 is no type of NumPy's.

    Raises:
        AdapterError: it holds what GGUF has no place for.
        BaseModelError: there is no base, or its family is none that is known here.
        OptionError: the package is not installed.
        OutputExistsError: the file is taken.
    """
    refuse_more(content, path, TITLE, kinds=("linear",))
    gguf = package(f"writing {path}")
    own = all(re.fullmatch(_MODULE, module) for module in content.factors)
    architecture, names, heads = _own(content) if own else _named(content, path, gguf)
    rank = max(one.rank for one in content.factors.values())
    tensors: dict[str, Tensor] = {}
    for module, one in content.factors.items():
        padded = pad(one.folded(), rank)
        B = padded.B if heads.get(module) is None else interleaved(padded.B, heads[module])
        tensors[f"{names[module]}.lora_a"], tensors[f"{names[module]}.lora_b"] = padded.A, B
    with atomic_file(path, overwrite) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        if content.record:
            writer.add_string(_RECORD, record_text(content.record))
        for name, tensor in sorted(tensors.items()):
            kind = torch.float16 if tensor.dtype == torch.float16 else torch.float32
            writer.add_tensor(name, tensor.detach().cpu().to(kind).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _own(content: Content) -> tuple[str, dict[str, str], dict[str, int]]:
    """llama.cpp's own names, of files that were read: nothing to do."""
    names = {module: f"{module}.weight" for module in content.factors}
    return content.metadata.get(_ARCHITECTURE) or "llama", names, {}


def _named(content: Content, path: Path, gguf: ModuleType) -> tuple[str, dict[str, str], dict[str, int]]:
    """The architecture, what each module is called in it, and the heads of those whose rows are kept interleaved."""
    plain = of_one_model(content.factors, path)
    config = content.base.get("text_config") or content.base
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise BaseModelError(
            f"writing {path} as {TITLE}: "
            + ("there is no base; give base=" if not content.base else f"the base is of the family {kind!r}")
            + f", and llama.cpp's names follow from one of {', '.join(sorted(ARCHITECTURES))}. For others write PEFT's "
            f"format, and use llama.cpp's convert_lora_to_gguf.py"
        )
    architecture, permuted = ARCHITECTURES[kind]
    index = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    doing = f"writing {path} as {TITLE}"
    table = gguf.get_tensor_name_map(index, told_number(config, ("num_hidden_layers",), doing) or 0)
    names = {}
    for module in content.factors:
        found = table.get_name(plain[module].replace("language_model.", ""))
        if found is None:
            raise AdapterError(f"writing {path} as {TITLE}: llama.cpp's {architecture} has no tensor for {module!r}")
        names[module] = f"{found}.weight"
    if not permuted:
        return architecture, names, {}
    q = told_number(config, ("num_attention_heads",), doing)
    if q is None:
        raise BaseModelError(f"{doing}: the base's configuration does not say num_attention_heads")
    k = told_number(config, ("num_key_value_heads",), doing) or q
    heads = {m: q if m.endswith(".q_proj") else k for m in names if m.endswith((".q_proj", ".k_proj"))}
    for module, count in heads.items():
        rows = content.factors[module].shape[0]
        if rows % (2 * count):
            raise BaseModelError(
                f"{doing}: the {rows} rows of {module!r} are not those of {count} heads, as the base says"
            )
    return architecture, names, heads


def interleaved(B: Tensor, heads: int) -> Tensor:
    """The rows of q or k as llama.cpp keeps them for the Llama family: the two halves of each head interleaved.

    Args:
        B: (out, r).
        heads: of this projection.

    Example:
        >>> interleaved(torch.arange(8)[:, None], 2).flatten().tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return B.reshape(heads, 2, B.shape[0] // heads // 2, B.shape[1]).swapaxes(1, 2).reshape(B.shape)


FORMAT = Format("gguf", TITLE, reads, open_file, write, file="merged.gguf", use="llama-cli -m BASE.gguf --lora {path}")
