"""GGUF, llama.cpp's: one file, `general.type = adapter`, by the package `gguf` (samerge[gguf]).

| tensor | shape |
|---|---|
| `<tensor>.weight.lora_a` | (r, in) |
| `<tensor>.weight.lora_b` | (out, r) |

There is one alpha for all, and llama.cpp scales by alpha / r, so that every module is written with one rank. The names
are llama.cpp's (`gguf_names.py`). A file that is read without a base keeps them, and llama.cpp's order of rows: such
files merge with each other, and are written back as they are.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.atomic import atomic_file
from samerge.adapters.describe import Stored, described
from samerge.adapters.formats.components import of_one_model
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.formats.gguf_names import ARCHITECTURE, MODULE, heads_of, interleaved, names_of, package
from samerge.adapters.formats.header import RECORD_FIELD, record_text
from samerge.adapters.formats.pairs import refuse_more
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.names import Target
from samerge.errors import AdapterError, in_short
from samerge.linalg.factors import pad
from samerge.weights.untrusted import Origin, open_regular, sha256

TITLE = "a GGUF file"
_KEY = re.compile(rf"(?P<module>{MODULE})\.weight\.(?P<part>lora_[ab])")
_ALPHA, _RECORD = "adapter.lora.alpha", f"{RECORD_FIELD}.record"
_FIELDS = (_ALPHA, ARCHITECTURE, _RECORD, "general.type", "adapter.type")


def reads(place: Place) -> bool:
    """Whether the file is called so."""
    return place.path.suffix == ".gguf"


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
        metadata={ARCHITECTURE: str(fields.get(ARCHITECTURE, ""))},
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
        raise origin.refusal(f"{path.name} is broken ({in_short(error)}); fetch it again") from error


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
    own = all(re.fullmatch(MODULE, module) for module in content.factors)
    architecture, names, heads = _own(content) if own else _named(content, path)
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
    return content.metadata.get(ARCHITECTURE) or "llama", names, {}


def _named(content: Content, path: Path) -> tuple[str, dict[str, str], dict[str, int]]:
    """The architecture, what each module is called in it, and the heads of those whose rows are kept interleaved."""
    plain, doing = of_one_model(content.factors, path), f"writing {path} as {TITLE}"
    architecture, names = names_of(plain.values(), content.base, doing)
    lacking = [module for module in plain if plain[module] not in names]
    if lacking:
        raise AdapterError(f"{doing}: llama.cpp's {architecture} has no tensor for {lacking[0]!r}")
    heads = heads_of({module: one.shape[0] for module, one in content.factors.items()}, content.base, doing)
    return architecture, {module: f"{names[plain[module]]}.weight" for module in plain}, heads


FORMAT = Format("gguf", TITLE, reads, open_file, write, file="merged.gguf", use="llama-cli -m BASE.gguf --lora {path}")
