"""diffusers: one safetensors file for all components of a pipeline.

| key | what it is |
|---|---|
| `unet.<module>.lora_A.weight`, `.lora_B.weight` | as PEFT's; also `transformer.`, `text_encoder.`, `text_encoder_2.` |
| `.lora.down.weight`, `.lora_linear_layer.down.weight`, `.processor.to_q_lora.down.weight` | of older releases |
| `<module>.alpha` | a number; the scale is alpha / r, and 1 where nothing says it |
| `lora_adapter_metadata` in the header | the configuration of every component, as PEFT has it |

What is named after kohya or the models' makers is brought to diffusers' names by diffusers itself (samerge[diffusers]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from samerge.adapters.checks import refuse_config
from samerge.adapters.config import scaling
from samerge.adapters.formats.components import COMPONENTS, component_of, is_maker, is_stem, placed, unique
from samerge.adapters.formats.diffusers_keys import KEY, STYLES, today
from samerge.adapters.formats.diffusers_ranks import METADATA_FIELD, told_ranks
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.formats.header import header_of
from samerge.adapters.formats.makers import from_kohya
from samerge.adapters.formats.pairs import Parts, adapter, grouped, module_of, number, pair, refuse_more, trimmed
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.patterns import PatternError, allowance
from samerge.adapters.writer import write_file
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors
from samerge.weights.untrusted import Origin, parse_json

TITLE = "a diffusers file"


def reads(place: Place) -> bool:
    """Whether the keys are of a component of a pipeline, or the header has diffusers' field."""
    if place.config is not None or not place.keys:
        return False
    if METADATA_FIELD in place.tensors.metadata:
        return True
    return any(KEY.fullmatch(key) and component_of(key) for key in map(today, place.keys))


def open_file(place: Place) -> Adapter:
    """The adapter in a file.

    Raises:
        AdapterError: the file is broken, or holds more than a LoRA.
    """
    origin = place.origin(TITLE)
    configs = _configs(place, origin)
    modules: dict[str, AdaptedModule] = {}
    try:
        with allowance():
            for module, parts in grouped(place, KEY, origin, today).items():
                modules.update(_module(place, module, parts, configs, origin))
    except PatternError as error:
        raise origin.refusal(f"{METADATA_FIELD}: {error}") from error
    return adapter(place, FORMAT.name, modules)


def _configs(place: Place, origin: Origin) -> dict[str, dict[str, Any]]:
    """The configuration of every component that the header has one of; "" stands for a file of one model.

    Raises:
        AdapterError: one is broken, or of an adapter that cannot be merged.
    """
    text = place.tensors.metadata.get(METADATA_FIELD)
    if text is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for field, value in parse_json(text.encode(), METADATA_FIELD, origin, infinite=True).items():
        first, _, rest = field.partition(".")
        component, own = (first, rest) if first in COMPONENTS and rest else ("", field)
        found.setdefault(component, {})[own] = value
    for config in found.values():
        refuse_config(place.name, {"peft_type": "LORA", **config})
    return found


def _module(
    place: Place, module: str, parts: Parts, configs: Mapping[str, Mapping[str, Any]], origin: Origin
) -> Mapping[str, AdaptedModule]:
    down, up = next((style for style in STYLES if set(style) & set(parts)), STYLES[0])
    stored = pair(place, module, parts, down, up, origin)
    left = set(parts) - {down, up, "alpha", "lora_magnitude_vector", "lora_magnitude_vector.weight"}
    if left:
        raise origin.refusal(f"module {module!r} has {sorted(parts)}, which do not go together; the file is broken")
    magnitude = next((key for part, key in parts.items() if part.startswith("lora_magnitude_vector")), None)
    if magnitude is not None:
        stored = replace(stored, magnitude=partial(place.tensors.read, magnitude))
    first = module.partition(".")[0]
    config = configs.get(first if first in configs else "")
    rank = stored.shapes[0][0]
    if config is not None:
        scale = scaling({**config, "rank_pattern": None, "r": rank}, module)
    else:
        scale = number(place, parts["alpha"], origin) / rank if "alpha" in parts else 1.0
    return module_of(place, module, stored, scale)


def write(content: Content, path: Path, overwrite: bool) -> Path:
    """Write one file, a rank for each module; alpha is the rank, which the header says where the ranks differ.

    Raises:
        AdapterError: it holds what such files have no place for, or modules of no pipeline.
        OptionError: diffusers is needed and not installed.
        OutputExistsError: the file is taken.
    """
    refuse_more(content, path, TITLE)
    factors = trimmed(content.factors)
    pairs = {module: content.layouts[module].tensors(one.folded()) for module, one in factors.items()}
    if any(is_stem(module) or is_maker(module) for module in pairs):
        pairs = from_kohya(pairs, path)
    names = unique({module: _name(module, content.base, path) for module in pairs}, path)
    tensors: dict[str, Tensor] = {}
    for module, (A, B) in pairs.items():
        tensors[f"{names[module]}.lora_A.weight"], tensors[f"{names[module]}.lora_B.weight"] = A, B
    plain = {module: LoraFactors(one.A, one.B) for module, one in factors.items()}
    told = told_ranks({names[module]: A.shape[0] for module, (A, _) in pairs.items()})
    return write_file(path, tensors, header_of(content, plain, path.stem) | told, overwrite)


def _name(module: str, base: Mapping[str, Any], path: Path) -> str:
    """A module with its component before it."""
    name = placed(module, base, path)
    if component_of(name) is None:
        raise AdapterError(
            f"writing {path} as {TITLE}: the module {module!r} is of no component of a pipeline that is known "
            f"({', '.join(COMPONENTS)}), and only their LoRAs are in such files; choose another format"
        )
    return name


FORMAT = Format(
    "diffusers",
    TITLE,
    reads,
    open_file,
    write,
    file="pytorch_lora_weights.safetensors",
    use='pipe.load_lora_weights("{path}")',
)
