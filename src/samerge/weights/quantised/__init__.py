"""Quantised weights: recognised by the configuration and the tensors' names, dequantised a tile of rows at a time.

One line of `FORMATS` for each format. A format finds the groups of tensors that make up one weight and gives that
weight under the name and shape it had before. What is packed in a format that is not known is never read as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from samerge.errors import BaseModelError
from samerge.weights.quantised import awq, bitsandbytes, compressed, fp8, gptq, hqq, mxfp4
from samerge.weights.quantised.packing import Found
from samerge.weights.stored import Stored, name_of

Finder = Callable[[Mapping[str, Stored], Mapping[str, Any]], Iterator[Found]]


@dataclass(frozen=True)
class Format:
    """A quantised format.

    Args:
        find: the weights that are in this format, given all tensors and the `quantization_config`.
        evident: whether the tensors' names alone tell it, without a configuration.
        hint: what to do about files in which no weight was found.
    """

    find: Finder
    evident: bool = False
    hint: str = ""


#: By the `quant_method` of a configuration.
FORMATS: dict[str, Format] = {
    "awq": Format(awq.find),
    "bitsandbytes": Format(bitsandbytes.find, evident=True),
    "compressed-tensors": Format(compressed.find),
    "fbgemm_fp8": Format(fp8.find),
    "fp8": Format(fp8.find, evident=True),
    "gptq": Format(gptq.find),
    "hqq": Format(hqq.find, evident=True),
    "modelopt": Format(fp8.find),
    "mxfp4": Format(mxfp4.find, evident=True),
    "torchao": Format(  # tensors that know their own format: see live_module.py
        lambda raw, settings: iter(()),
        hint="only the library reads these files: install torchao, load the model with transformers, and give the "
        "model itself as the base; or ",
    ),
}

_WAY_OUT = (
    "give the unquantised base instead, or load the model with its library, call model.dequantize() and save_pretrained"
)

#: The fields of a configuration that say how weights are quantised, and the part of it that may have them, too.
_FIELDS, _INNER = ("quantization_config", "compression_config"), "text_config"

#: Endings of tensors that hold packed weights when they are integers, in any format.
_PACKED = ("weight", ".weight_packed", ".W_q", ".codes", "_blocks", "_qdata")


def dequantised(
    raw: Mapping[str, Stored], config: Mapping[str, Any], base: str, live: bool = False
) -> dict[str, Stored]:
    """All tensors of a base, quantised weights under their own name and shape.

    Args:
        raw: the tensors as they are stored.
        config: the model's configuration.
        base: the base's name, for messages.
        live: whether they come from a live model, whose weights may have been dequantised when it was loaded.

    Raises:
        BaseModelError: the format is not known, or not in this variant.
    """
    settings = quantization(config)
    method = _method(settings)
    doing = f"reading the base model {base!r}"
    if settings and method not in FORMATS:
        raise BaseModelError(
            f"{doing}: its configuration says that it is quantised (quant_method={method!r}), a format that cannot be "
            f"read; known: {', '.join(FORMATS)}. {_WAY_OUT[0].upper()}{_WAY_OUT[1:]}"
        )
    formats = {method: FORMATS[method]} if method else {name: f for name, f in FORMATS.items() if f.evident}
    result = dict(raw)
    count = 0
    for name, kind in formats.items():
        try:
            for found in kind.find(raw, settings):
                count += 1
                for part in found.parts:
                    result.pop(part, None)
                result[found.name] = found.weight
        except (ValueError, KeyError) as error:
            raise BaseModelError(f"{doing}, whose weights are quantised ({name}): {error}; {_WAY_OUT}") from error
    _refuse_packed(result, f"{doing}{f' (quant_method={method!r})' if method else ''}", live)
    if method and not count and not live:
        raise BaseModelError(
            f"{doing}: its configuration says that it is quantised (quant_method={method!r}), but no weight is in that "
            f"format as samerge knows it (tensors: {list(raw)[:3]} ...); {FORMATS[method].hint}{_WAY_OUT}"
        )
    return result


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that says how the weights are quantised; empty when they are not."""
    for holder in (config, config.get(_INNER)):
        for key in _FIELDS:
            found = holder.get(key) if isinstance(holder, Mapping) else None
            if found:
                return dict(found)
    return {}


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the same model in full precision.

    Example:
        >>> without_quantization({"n_layer": 2, "text_config": {"compression_config": {"quant_method": "fp8"}}})
        {'n_layer': 2, 'text_config': {}}
    """
    inner = config.get(_INNER)
    plain = {key: value for key, value in config.items() if key not in _FIELDS}
    return plain | ({_INNER: without_quantization(inner)} if isinstance(inner, Mapping) else {})


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method", "")
    method = str(getattr(method, "value", method))
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"
    return "" if not settings else method or "unknown"


def _refuse_packed(weights: Mapping[str, Stored], doing: str, live: bool) -> None:
    """Refuse packed values; a folder may also hold buffers of integers and masks, which are no weights."""
    for name, weight in weights.items():
        integers = not weight.dtype.is_floating_point and len(weight.shape) >= 2
        if integers and (live or name.endswith(_PACKED)):
            dtype = name_of(weight.dtype)
            raise BaseModelError(
                f"{doing}: {name} {weight.shape} holds packed values ({dtype}) in a format that is not known, or not "
                f"named in the configuration's quantization_config; {_WAY_OUT}"
            )
