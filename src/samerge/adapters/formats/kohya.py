"""kohya sd-scripts, A1111, ComfyUI, ai-toolkit: one safetensors file, with LoCon, LoHa and LoKr of LyCORIS.

| key | shape |
|---|---|
| `<module>.lora_down.weight`, or `.lora_A.weight` | (r, in), of a convolution (r, in, *kernel) |
| `<module>.lora_up.weight`, or `.lora_B.weight` | (out, r), (out, r, 1, 1) |
| `<module>.lora_mid.weight` | (r, r, *kernel) of a convolution in CP form, whose `lora_down` is (r, in, 1, 1) |
| `<module>.alpha` | a number; the scale is alpha / r, and 1 where it is missing |
| `<module>.hada_*`, `.lokr_*` | see `products.py` |
| `<module>.dora_scale` | (out, 1): DoRA |

A module is `lora_unet_` and its path with `_` for `.`, `lora_te_...` for text encoders, or its path with dots, behind
`diffusion_model.` (ComfyUI, ai-toolkit), `base_model.model.`, or nothing (DiffSynth, Lightning); they come back as they
are where nobody asks for kohya's own.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from samerge.adapters.describe import Stored
from samerge.adapters.formats.components import component_of, is_of_diffusion, is_stem, kohya_stems, placed, unique
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.formats.header import header_of
from samerge.adapters.formats.pairs import Parts, adapter, grouped, module_of, number, pair, refuse_more, trimmed
from samerge.adapters.formats.products import divisor, kind_of, notes_of, product, shapes_of
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.writer import write_file
from samerge.linalg.factors import LoraFactors
from samerge.linalg.products import through_core
from samerge.weights.untrusted import Origin

TITLE = "a kohya file"
_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:down|up|mid|A|B)\.weight|alpha|dora_scale|hada_(?:w[12]_[ab]|t[12])"
    r"|lokr_(?:w[12](?:_[ab])?|t2))"
)
#: Layers of a transformer's blocks under diffusers' names, as OneTrainer writes them.
_BLOCKS = re.compile(r"lora_transformer_(single_)?transformer_blocks_\d+_")
#: Those that Flux, SD3 and Qwen-Image all have.
_ATTENTION = re.compile(r"lora_transformer_transformer_blocks_\d+_attn_(?:to_(?:[qkv]|out_0|add_out)|add_[qkv]_proj)")
#: What only files of this kind have.
_OWN = re.compile(r"(?!base_model\.).*\.(lora_(down|up)\.weight|hada_w1_a|lokr_w1|lokr_w1_a)")


def reads(place: Place) -> bool:
    """Whether any key is one that only files of this kind have, or says that it is of a diffusion model's module.

    Names of diffusers' components (`transformer.`, `unet.`, and what stands in them) are left to its own format.
    """
    if any(_OWN.fullmatch(key) or key.startswith("diffusion_model.") for key in place.keys):
        return True
    return place.config is None and _known([match["module"] for key in place.keys if (match := _KEY.fullmatch(key))])


def _known(modules: Collection[str]) -> bool:
    """Whether names are enough to tell that a file is of this kind."""
    if any(module.startswith("diffusion_model.") for module in modules):
        return True
    return any(map(is_of_diffusion, modules)) and not any(map(component_of, modules))


def open_file(place: Place) -> Adapter:
    """The adapter in a file.

    Raises:
        AdapterError: the file is broken, or holds more than a LoRA.
    """
    origin = place.origin(TITLE)
    modules: dict[str, AdaptedModule] = {}
    products: Counter[str] = Counter()
    for module, parts in grouped(place, _KEY, origin).items():
        kind = kind_of(shapes_of(place, parts))
        modules.update(_product(place, module, parts, origin) if kind else _pair(place, module, parts, origin))
        if kind:
            products[kind] += 1
    return adapter(place, FORMAT.name, modules, notes=notes_of(place.name, modules, products))


def _pair(place: Place, module: str, parts: Parts, origin: Origin) -> Mapping[str, AdaptedModule]:
    style = ("lora_A.weight", "lora_B.weight") if "lora_A.weight" in parts else ("lora_down.weight", "lora_up.weight")
    stored = pair(place, module, parts, *style, origin)
    known = {*style, "lora_mid.weight", "alpha", "dora_scale"}
    if set(parts) - known:
        raise origin.refusal(f"module {module!r} has {sorted(parts)}, which do not go together; the file is broken")
    rank = stored.shapes[0][0]
    if "lora_mid.weight" in parts:
        stored = _through_mid(place, module, parts, stored, origin)
    if "dora_scale" in parts:
        stored = replace(stored, magnitude=_magnitude(place, module, parts, stored, origin))
    return module_of(place, module, stored, _alpha(place, parts, rank, origin) / rank)


def _product(place: Place, module: str, parts: Parts, origin: Origin) -> Mapping[str, AdaptedModule]:
    stored, rank = product(place, module, parts, origin), divisor(shapes_of(place, parts))
    scale = 1.0 if rank is None else _alpha(place, parts, rank, origin) / rank
    return module_of(place, module, stored, scale)


def _alpha(place: Place, parts: Parts, rank: int, origin: Origin) -> float:
    return number(place, parts["alpha"], origin) if "alpha" in parts else float(rank)


def _through_mid(place: Place, module: str, parts: Parts, stored: Stored, origin: Origin) -> Stored:
    """A convolution in CP form: its core between the two factors goes into A, exactly."""
    down, up = stored.shapes
    mid = place.tensors.entries[parts["lora_mid.weight"]].shape
    if len(mid) < 3 or mid[0] != up[1] or mid[1] != down[0] or any(size != 1 for size in down[2:]):
        raise origin.refusal(
            f"module {module!r}: lora_down has shape {down}, lora_mid {mid} and lora_up {up}; expected (r, in, 1, 1), "
            f"(r, r, *kernel) and (out, r, 1, 1)"
        )
    read, core = stored.read, partial(place.tensors.read, parts["lora_mid.weight"])

    def whole() -> tuple[Tensor, Tensor]:
        a, b = read()
        return through_core(core().float(), a.flatten(1).float()), b.float()

    return replace(stored, shapes=((mid[0], down[1], *mid[2:]), up), read=whole)


def _magnitude(place: Place, module: str, parts: Parts, stored: Stored, origin: Origin) -> partial[Tensor]:
    """DoRA's magnitude of every output, as PEFT has it; that of every input is another method."""
    shape, out = place.tensors.entries[parts["dora_scale"]].shape, stored.shapes[1][0]
    if not shape or shape[0] != out or any(size != 1 for size in shape[1:]):
        raise origin.refusal(
            f"module {module!r}: its dora_scale has shape {shape}, a magnitude of every input, which is not what "
            f"PEFT's DoRA is. Merge it into its base model, and turn the result into a LoRA with samerge extract"
        )
    return partial(place.tensors.read, parts["dora_scale"])


def write(content: Content, path: Path, overwrite: bool) -> Path:
    """Write one file, a rank for each module, and one alpha for all, as kohya's scripts have it.

    The names are the sources' where nobody chose the format and no base brought them to its own.

    Raises:
        AdapterError: it holds what such files have no place for.
        OutputExistsError: the file is taken.
    """
    refuse_more(content, path, TITLE)
    factors = of_one_alpha(trimmed(content.factors))
    if content.asked or content.base:
        names = {module: placed(module, content.base, path) for module in factors}
        stems = kohya_stems(unique(names, path).values(), path, not content.asked, content.base)
    else:  # what loads the sources loads their names, and may load no others
        names = stems = {module: module for module in factors}
    _warn_of_diffusers({stems[name]: module for module, name in names.items()}, path, "_class_name" in content.base)
    dotted = _known(stems.values())
    tensors: dict[str, Tensor] = {}
    for module, one in factors.items():
        A, B = content.layouts[module].tensors(one)
        stem = stems[names[module]]
        down, up = ("lora_A", "lora_B") if dotted and "." in stem else ("lora_down", "lora_up")
        tensors[f"{stem}.{down}.weight"], tensors[f"{stem}.{up}.weight"] = A, B
        tensors[f"{stem}.alpha"] = torch.tensor(one.scale * one.rank)
    return write_file(path, tensors, header_of(content, factors, path.stem), overwrite)


def _warn_of_diffusers(sources: Mapping[str, str], path: Path, known: bool) -> None:
    """Say that not all that is written is read: diffusers' names of a transformer's modules, in kohya's form.

    Args:
        sources: what each module is called in the file -> what it was called.
        path: the file.
        known: whether a base said whose they are.
    """
    theirs = [stem for stem in sources if stem.startswith("lora_transformer_")]
    if not theirs:
        return
    way = "choose format='diffusers'"
    if any(is_stem(sources[stem]) for stem in theirs):  # whose dots nothing else tells
        way = f"give base=, the model, and {way}"
    strange = [stem for stem in theirs if not _BLOCKS.match(stem) and "blocks_" in stem]
    if strange:
        warnings.warn(
            f"writing {path}: {strange[0]!r} and {len(strange) - 1} more modules have diffusers' names in kohya's "
            f"form, and the model's makers call them otherwise: OneTrainer may read them, ComfyUI and diffusers do "
            f"not; {way}",
            stacklevel=4,
        )
    unread = [stem for stem in theirs if _BLOCKS.match(stem) and "attn_" not in stem]
    if unread:
        warnings.warn(
            f"writing {path}: {unread[0]!r} and {len(unread) - 1} more modules have diffusers' names in kohya's form; "
            f"OneTrainer and, of Flux and SD3, ComfyUI read them, diffusers itself the attention layers alone: for "
            f"it, {way}",
            stacklevel=4,
        )
    if not known and all(_ATTENTION.fullmatch(stem) and not is_stem(sources[stem]) for stem in theirs):
        warnings.warn(
            f"writing {path}: {theirs[0]!r} and {len(theirs) - 1} more modules may be Flux's, SD3's or Qwen-Image's, "
            f"and are named as Flux's and SD3's: of Qwen-Image, neither ComfyUI nor diffusers reads these; give base=, "
            f"the model, or {way}",
            stacklevel=4,
        )


def of_one_alpha(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """The same updates with the alpha that most of them have: diffusers does not find the others' for attention.

    The rest of the scale goes into B, which is in float32 where its own dtype would round the product.

    Example:
        >>> one, two = LoraFactors(torch.ones(4, 2), torch.ones(2, 4)), LoraFactors(torch.ones(2, 2), torch.ones(2, 2))
        >>> found = of_one_alpha({"a": one, "b": one, "c": two})
        >>> found["c"].scale, found["c"].B[0].tolist(), found["a"] is one
        (2.0, [0.5, 0.5], True)
    """
    alphas = {module: one.scale * one.rank for module, one in factors.items()}
    counts = Counter(alphas.values())
    usual = max(counts, key=lambda alpha: (counts[alpha], alpha)) or 1.0
    found = dict(factors)
    for module, one in factors.items():
        if alphas[module] != usual:
            exact = one.B.float() * (alphas[module] / usual)
            B = exact.to(one.B.dtype)
            found[module] = LoraFactors(one.A, B if torch.equal(B.float(), exact) else exact, usual / one.rank)
    return found


FORMAT = Format(
    "kohya",
    TITLE,
    reads,
    open_file,
    write,
    file="merged.safetensors",
    use="put {path} where ComfyUI or A1111 looks for LoRA files",
)
