"""Names of kohya and of models' makers (Flux's `double_blocks`, SDXL's `input_blocks`), brought to diffusers' own.

By diffusers' own converters (samerge[diffusers]), which also split joint projections. Each is made for one model, and
takes any names for that model's: what goes into one has that model's names throughout, and what fits none is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.describe import Stored, described
from samerge.adapters.formats.components import (
    bare,
    component_of,
    is_maker,
    is_stem,
    kohya_stems,
    split_stem,
    underscored,
)
from samerge.adapters.formats.diffusers_keys import KEY, today
from samerge.adapters.model import Adapter, widest
from samerge.adapters.names import Target
from samerge.errors import AdapterError, OptionError, in_short

#: Names of the makers of Flux, and of those of Stable Diffusion XL, in kohya's stems.
_FLUX, _XL = (
    re.compile(r"lora_unet_(double|single)_blocks_.*|lora_transformer_.*"),
    re.compile(r"lora_te2_.*|lora_unet_(input_blocks|middle_block|output_blocks)_.*"),
)
#: Names of the modules of Stable Diffusion, and of XL, in kohya's form.
_UNET = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|conv_in|conv_out|conv_norm_out|time_embed"
    r"|time_embedding|add_embedding|label_emb|out)(?:_.*)?"
)
#: What a conversion may change of the factors' squared norm.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class _Model:
    """A model whose names one of diffusers' loaders converts.

    Args:
        loader: of diffusers.
        path: of any of its modules, with `_` for `.`.
        dots: that path with dots, as a replacement of the pattern, where the loader wants it so.
        own: of a module that models with names like these have not; one is enough.
    """

    loader: str
    path: re.Pattern[str]
    dots: str = ""
    own: re.Pattern[str] = re.compile(r".*")


_MODELS = (
    _Model(
        "WanLoraLoaderMixin",
        re.compile(r"blocks_(\d+)_(self_attn|cross_attn|ffn)_((?<=attn_)(?:[qkvo]|[kv]_img)|(?<=ffn_)[02])"),
        r"diffusion_model.blocks.\1.\2.\3",
    ),
    _Model(
        "QwenImageLoraLoaderMixin",
        re.compile(
            r"transformer_blocks_\d+_(?:attn_(?:to_[qkv]|to_out_0|add_[qkv]_proj|to_add_out)|(?:img|txt)_mod_1"
            r"|(?:img|txt)_mlp_net_(?:0_proj|2))"
        ),
    ),
    _Model(
        "ZImageLoraLoaderMixin",
        re.compile(
            r"(?:layers|noise_refiner|context_refiner)_\d+_(?:attention_(?:to_[qkv]|to_out_0|out)|feed_forward_w[123]"
            r"|adaLN_modulation_0)"
        ),
        own=re.compile(r".*_(?:attention_to_(?:[qkv]|out_0)|adaLN_modulation_0)"),  # Lumina has not
    ),
)


def by_diffusers(adapter: Adapter, modules: Collection[str], base: str) -> Adapter:
    """An adapter with some of its modules under diffusers' names, their factors in memory; a merge of it is diffusers'.

    Args:
        adapter: whose modules.
        modules: those that the base does not have under the names that they have.
        base: its name, for errors.

    Raises:
        OptionError: diffusers is not installed.
        AdapterError: diffusers cannot convert them, or they are more than LoRA.
    """
    doing = f"bringing adapter {adapter.name!r} to the names of the base model {base!r}"
    more = [name for name in modules if adapter.modules[name].magnitude or adapter.modules[name].bias]
    if more:
        raise AdapterError(
            f"{doing}: {more[0]!r} is named as the model's makers do and has more than two factors (DoRA, or a bias), "
            f"which diffusers' converters do not know. Merge it into its base, and use samerge extract"
        )
    loaded = {name: adapter.modules[name] for name in modules}
    pairs = {n: one.layout.tensors(one.load().to(dtype=torch.float32).folded()) for n, one in loaded.items()}
    dtype = widest(one.dtype for one in loaded.values())
    kept = {name: one for name, one in adapter.modules.items() if name not in loaded}
    for name, (A, B) in from_kohya(pairs, Path(adapter.name), doing).items():
        stored = Stored((tuple(A.shape), tuple(B.shape)), dtype, False, partial(_both, A, B))
        kept.update(described(adapter.name, Target("linear", name), {}, stored, 1.0, False, A.shape[0]))
    return replace(adapter, modules=dict(sorted(kept.items())), format="diffusers")


def _both(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return A, B


def from_kohya(
    pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path, doing: str = ""
) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors under the names of kohya or of a model's makers, under diffusers': split where diffusers splits.

    Args:
        pairs: A and B of every module, scale 1.
        path: what is being written, for errors.
        doing: what is being done, for errors; writing a file by default.

    Raises:
        OptionError: diffusers is not installed.
        AdapterError: diffusers cannot convert them, or leaves some of them out.
    """
    doing = doing or f"writing {path} as a diffusers file"
    try:
        from diffusers import loaders
    except ImportError as error:
        raise OptionError(
            f"{doing}: its modules are named as kohya or the model's makers do ({min(pairs)!r}), and diffusers knows "
            f"its own names for them; install samerge[diffusers], or choose format='kohya' without a base"
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    theirs = dict(pairs)
    for module in pairs:  # a trainer's prefix before diffusers' own name
        if bare(module) != module and (known := component_of(bare(module))):
            A, B = theirs.pop(module)
            found[".".join(known)] = {"A": A, "B": B}
    if theirs:
        found |= _converted(theirs, path, doing, loaders)
    lost = 1 - _squares(parts["B"] for parts in found.values()) / (_squares(B for _, B in pairs.values()) or 1.0)
    if lost > _ROUNDING:
        raise AdapterError(
            f"{doing}: diffusers' converter leaves out some of its modules ({lost:.1%} of them by squared norm), which "
            f"would lose what was trained there; choose format='kohya' without a base, which keeps them"
        )
    return {module: (parts["A"], parts["B"]) for module, parts in sorted(found.items())}


def _converted(
    pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path, doing: str, loaders: Any
) -> dict[str, dict[str, Tensor]]:
    """The factors as diffusers' converter for their model gives them."""
    keys, mixin, options = _reader(pairs, path, doing, loaders)
    state: dict[str, Tensor] = {}
    for module, (A, B) in pairs.items():
        down, up = ("lora_A", "lora_B") if "." in keys[module] else ("lora_down", "lora_up")
        state[f"{keys[module]}.{down}.weight"], state[f"{keys[module]}.{up}.weight"] = A, B
    try:
        made = mixin.lora_state_dict(dict(state), **options)
    except Exception as error:  # of many kinds: its converters are written for what they expect
        raise AdapterError(
            f"{doing}: diffusers cannot convert its names, such as {min(pairs)!r} ({in_short(error)}); "
            f"choose format='kohya' without a base, which keeps them"
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in (made[0] if isinstance(made, tuple) else made).items():
        match = KEY.fullmatch(today(key))
        if match is None:
            raise AdapterError(f"{doing}: diffusers made {key!r} of a module, which is no LoRA's")
        is_down = match["part"].endswith(("lora_A.weight", "down.weight"))
        found.setdefault(match["module"], {})["A" if is_down else "B"] = tensor
    return found


def _reader(
    modules: Collection[str], path: Path, doing: str, loaders: Any
) -> tuple[dict[str, str], Any, dict[str, Any]]:
    """What diffusers calls each module, and which of its loaders converts them, with what options.

    Raises:
        AdapterError: none does.
    """
    paths = {module: split_stem(module)[1] if is_stem(module) else underscored(bare(module)) for module in modules}
    for model in _MODELS:
        theirs = all(model.path.fullmatch(paths[m]) and not m.startswith("lora_transformer_") for m in modules)
        if theirs and any(map(model.own.fullmatch, paths.values())):
            named = {m: model.path.sub(model.dots, p) if model.dots else f"lora_unet_{p}" for m, p in paths.items()}
            return named, getattr(loaders, model.loader), {}
    stems, strange = {}, [m for m in modules if not is_stem(m) and not is_maker(m) and component_of(m) is None]
    strange += [m for m in modules if is_maker(m) and not is_maker(bare(m)) and component_of(bare(m)) is None]
    if not strange:
        known = kohya_stems({bare(module) for module in modules}, path)
        stems = {module: known[bare(module)] for module in modules}
    if any(_FLUX.fullmatch(stem) for stem in stems.values()):
        return stems, loaders.FluxLoraLoaderMixin, {}
    strange += [m for m, stem in stems.items() if stem.startswith("lora_unet_") and not _UNET.fullmatch(paths[m])]
    if strange:
        raise AdapterError(
            f"{doing}: no converter of diffusers is known here for its names, such as {strange[0]!r}, or for all of "
            f"them together; choose format='kohya' without a base, which keeps them"
        )
    if any(_XL.fullmatch(stem) for stem in stems.values()):
        return stems, loaders.StableDiffusionXLLoraLoaderMixin, {"unet_config": SimpleNamespace(layers_per_block=2)}
    return stems, loaders.StableDiffusionLoraLoaderMixin, {}


def _squares(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)
