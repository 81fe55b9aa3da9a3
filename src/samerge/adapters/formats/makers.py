"""Names of kohya and of models' makers (Flux's `double_blocks`, SDXL's `input_blocks`), brought to diffusers' own.

By diffusers' own converters (samerge[diffusers]), which also split joint projections.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.describe import Stored, described
from samerge.adapters.formats.components import kohya_stems
from samerge.adapters.formats.diffusers_keys import KEY, today
from samerge.adapters.model import Adapter, widest
from samerge.adapters.names import Target
from samerge.errors import AdapterError, OptionError

#: Names of the makers of Flux, and of those of Stable Diffusion XL, in kohya's stems.
_FLUX, _XL = (
    re.compile(r"lora_unet_(double|single)_blocks_.*|lora_transformer_.*"),
    re.compile(r"lora_te2_.*|lora_unet_(input_blocks|middle_block|output_blocks)_.*"),
)
#: What a conversion may change of the factors' squared norm.
_ROUNDING = 1e-5


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
    stems = kohya_stems({_bare(module) for module in pairs}, path)
    state: dict[str, Tensor] = {}
    for module, (A, B) in pairs.items():
        stem = stems[_bare(module)]
        state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"] = A, B
    options: dict[str, Any] = {}
    if any(_FLUX.fullmatch(stem) for stem in stems.values()):
        mixin = loaders.FluxLoraLoaderMixin
    elif any(_XL.fullmatch(stem) for stem in stems.values()):
        mixin, options = loaders.StableDiffusionXLLoraLoaderMixin, {"unet_config": SimpleNamespace(layers_per_block=2)}
    else:
        mixin = loaders.StableDiffusionLoraLoaderMixin
    try:
        made = mixin.lora_state_dict(dict(state), **options)
    except Exception as error:  # of many kinds: its converters are written for what they expect
        told = " ".join(str(error).split())[:200]
        raise AdapterError(
            f"{doing}: diffusers cannot convert its names, such as {min(pairs)!r} ({type(error).__name__}: {told}); "
            f"choose format='kohya' without a base, which keeps them"
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in (made[0] if isinstance(made, tuple) else made).items():
        match = KEY.fullmatch(today(key))
        if match is None:
            raise AdapterError(f"{doing}: diffusers made {key!r} of a module, which is no LoRA's")
        down = match["part"].endswith(("lora_A.weight", "down.weight"))
        found.setdefault(match["module"], {})["A" if down else "B"] = tensor
    lost = 1 - _squares(parts["B"] for parts in found.values()) / (_squares(B for _, B in pairs.values()) or 1.0)
    if lost > _ROUNDING:
        raise AdapterError(
            f"{doing}: diffusers' converter leaves out some of its modules ({lost:.1%} of them by squared norm), which "
            f"would lose what was trained there; choose format='kohya' without a base, which keeps them"
        )
    return {module: (parts["A"], parts["B"]) for module, parts in sorted(found.items())}


def _squares(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def _bare(module: str) -> str:
    """ComfyUI's name of a diffusion model's module as its makers have it."""
    return module.removeprefix("diffusion_model.")
