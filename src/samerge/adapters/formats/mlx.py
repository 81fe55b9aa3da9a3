"""MLX: a folder with `adapters.safetensors` and `adapter_config.json`, as mlx-lm trains and loads them.

| key | shape |
|---|---|
| `<module>.lora_a` | (in, r) |
| `<module>.lora_b` | (r, out) |

The scale is `lora_parameters.scale`, one for all; so is the rank, since mlx-lm makes its layers by the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from samerge.adapters.formats.components import of_one_model
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.formats.pairs import adapter, grouped, module_of, pair, refuse_more
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.writer import write_adapter
from samerge.linalg.factors import pad
from samerge.weights.fields import NUMBER, OBJECT, TEXT, check_fields
from samerge.weights.hub import CONFIG_NAME

TITLE = "MLX's format"
WEIGHTS_NAME = "adapters.safetensors"
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_[ab])")
#: What to do with an adapter that cannot be read.
_FUSED = "fuse it into its base with mlx_lm.fuse, and turn the result into a LoRA with samerge extract"
_LAYER = re.compile(r"(?:.*\.)?layers\.\d+\.(?P<rest>.+)")


def reads(place: Place) -> bool:
    """Whether any key is MLX's."""
    return any(key.endswith((".lora_a", ".lora_b")) for key in place.keys)


def open_folder(place: Place) -> Adapter:
    """The adapter in a folder.

    Raises:
        AdapterError: a file is missing or broken, or the adapter is no LoRA.
    """
    origin = place.origin(TITLE)
    if place.config is None:
        raise origin.refusal(f"there is no {CONFIG_NAME} beside {place.path}, which says the scale; put it there")
    check_fields(place.config, {"lora_parameters": OBJECT, "fine_tune_type": TEXT, "model": TEXT}, CONFIG_NAME, origin)
    parameters: Mapping[str, Any] = place.config.get("lora_parameters") or {}
    check_fields(parameters, {"scale": NUMBER}, f"lora_parameters of {CONFIG_NAME}", origin, needed=("scale",))
    kind = place.config.get("fine_tune_type") or "lora"
    if kind != "lora":
        raise origin.refusal(f"it was trained as {kind[:40]!r}, and only its LoRA adapters can be merged; {_FUSED}")
    modules: dict[str, AdaptedModule] = {}
    for module, parts in grouped(place, _KEY, origin).items():
        shapes = [place.tensors.entries[key].shape for key in parts.values()]
        if all(len(shape) == 3 for shape in shapes):
            raise origin.refusal(
                f"module {module!r} holds the factors of a stack of experts {shapes}, and only those of linear layers "
                f"are read; {_FUSED}"
            )
        stored = pair(place, module, parts, "lora_a", "lora_b", origin, _turned)
        modules.update(module_of(place, module, stored, float(parameters["scale"])))
    return adapter(place, FORMAT.name, modules, {"base_model_name_or_path": place.config.get("model")})


def _turned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.T, b.T


def write(content: Content, path: Path, overwrite: bool) -> Path:
    """Write the folder, with the record and a card. One rank and one scale for all; zeros are appended for that.

    Raises:
        AdapterError: it holds what MLX has no place for.
        OutputExistsError: the folder is taken.
    """
    refuse_more(content, path, TITLE, kinds=("linear",))
    names = of_one_model(content.factors, path, kept=not content.asked)
    scales = {one.scale for one in content.factors.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    rank = max(one.rank for one in content.factors.values())
    tensors: dict[str, Tensor] = {}
    for module, one in content.factors.items():
        padded = pad(one if one.scale == scale else one.folded(), rank)
        tensors[f"{names[module]}.lora_a"], tensors[f"{names[module]}.lora_b"] = padded.A.T, padded.B.T
    keys = {match["rest"] if (match := _LAYER.fullmatch(name)) else name for name in names.values()}
    config = {
        "fine_tune_type": "lora",
        "model": content.settings.get("base_model_name_or_path"),
        "num_layers": -1,  # all of the model's; those without tensors of their own are zero
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(keys)},
    }
    return write_adapter(
        path, tensors, config, content.record, content.card, overwrite=overwrite, weights_name=WEIGHTS_NAME
    )


FORMAT = Format("mlx", TITLE, reads, open_folder, write, use="mlx_lm.generate --adapter-path {path}")
