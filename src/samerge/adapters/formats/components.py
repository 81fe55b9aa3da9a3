"""The parts of a diffusion pipeline in the names of modules: kohya's stems, and the prefixes of diffusers.

| kohya | diffusers |
|---|---|
| `lora_unet_` | `unet.` |
| `lora_transformer_` (OneTrainer, ComfyUI) | `transformer.` |
| `lora_te_`, `lora_te1_` beside a transformer or a second one | `text_encoder.` |
| `lora_te2_` | `text_encoder_2.` |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samerge.errors import AdapterError

#: What a stem of kohya's begins with -> the components that it can mean, in diffusers' words.
STEMS = {
    "lora_unet_": ("unet", "transformer"),
    "lora_transformer_": ("transformer",),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3", "text_encoder_2"),
    "lycoris_": ("unet", "transformer"),
}
COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
#: Language models whose own names begin with `transformer.`: GPT-2, Falcon, DistilBERT, ChatGLM.
_LANGUAGE = re.compile(r"transformer\.(h|wte|wpe|layer|encoder|word_embeddings|embedding|output_layer)\b.*")

#: What the names of a component's modules begin with where the component itself is not named.
_BARE = (
    ("unet", re.compile(r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding)\b.*")),
    ("transformer", re.compile(r"(single_)?transformer_blocks\..*")),
    ("text_encoder", re.compile(r"text_model\..*")),
)
#: A module of CLIP's text encoder, without its `text_model`.
_CLIP = re.compile(r"^(text_encoder(?:_\d)?\.)(?=encoder\.layers\.|embeddings\.)")
#: Stacks of blocks that no model but those makers' has.
_STACKS = r"(?:double_blocks|single_blocks|joint_blocks|input_blocks|middle_block|output_blocks)"
#: Names of the models' makers, which kohya's stems are made of as they are.
_MAKERS = re.compile(
    rf"(?:{_STACKS}"
    r"|blocks[._]\d+[._](?:self_attn(?=[._][qkvo]$)|cross_attn(?![._]to_)|ffn(?=[._]\d)))[._].*"
)
#: What no language model calls a module: they have `layers.0.attention`, `layers.0.feed_forward`, `blocks.0.self_attn`
#: and `blocks.0.ffn`, too (InternLM2, Llama 4, LFM2, GPT-NeoX, RWKV), and a file of theirs does not say its scale.
_ALONE = re.compile(
    rf"(?:{_STACKS}\."
    r"|(?:noise|context)_refiner\.\d+\."
    r"|layers\.\d+\.(?:attention\.to_(?:[qkv]$|out\b)|adaLN_modulation\b)"
    r"|blocks\.\d+\.(?:self_attn\.[qkvo]$|cross_attn\.|ffn\.\d+$|adaln_modulation)).*"
)
#: Anima's, Cosmos's.
_NET = re.compile(r"(?:base_model\.model\.)*net\.blocks\.\d+\..*")
#: Modules of Qwen-Image and Z-Image, whose makers call them as diffusers does, that others' transformers have not.
_ALIKE = re.compile(
    r"transformer_blocks\.\d+\.(?:img|txt)_(?:mlp|mod)\..*"
    r"|(?:layers|noise_refiner|context_refiner)\.\d+\.(?:attention\.to_(?:[qkv]|out\.0)|adaLN_modulation\.0)"
)
#: What these two are called in a base's configuration.
_ALIKE_BASES = re.compile(r"(?:QwenImage(?!21)|ZImage).*")
#: What trainers put before the names of a diffusion model's modules.
_BEFORE = re.compile(r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|net\.|model\.)+")
#: What PEFT puts before all names, once more.
_PEFTS = re.compile(r"^(?:base_model\.model\.)+")


def is_of_diffusion(module: str) -> bool:
    """Whether a dotted name alone says that its model is a diffusion model, whatever a trainer put before it.

    Example:
        >>> is_of_diffusion("diffusion_model.x"), is_of_diffusion("blocks.0.self_attn.q")
        (True, True)
        >>> is_of_diffusion("base_model.model.double_blocks.0.img_mlp"), is_of_diffusion("blocks.0.self_attn.q_proj")
        (True, False)
    """
    if "diffusion_model." in module or _NET.fullmatch(module):
        return True
    inner = _BEFORE.sub("", module)
    return any(pattern.fullmatch(inner) for pattern in (_ALONE, *(pattern for _, pattern in _BARE[:2])))


def bare(module: str) -> str:
    """A diffusion model's module without what a trainer put before its name; any other name as it is.

    Example:
        >>> bare("base_model.model.double_blocks.0.img_mlp.0"), bare("model.layers.0.self_attn.q_proj")
        ('double_blocks.0.img_mlp.0', 'model.layers.0.self_attn.q_proj')
    """
    return _BEFORE.sub("", module) if is_of_diffusion(module) else module


def is_stem(name: str) -> bool:
    """Whether a module is named as kohya does, with `_` for `.`.

    Example:
        >>> is_stem("lora_unet_mid_block_attentions_0_proj_in"), is_stem("unet.mid_block.attentions.0.proj_in")
        (True, False)
    """
    return "." not in name and name.startswith(tuple(STEMS))


def is_maker(name: str) -> bool:
    """Whether a module is named as the model's makers do, not diffusers.

    Example:
        >>> is_maker("diffusion_model.double_blocks.0.img_attn.qkv"), is_maker("lora_unet_input_blocks_4_1_proj_in")
        (True, True)
        >>> is_maker("unet.down_blocks.0.resnets.0.conv1"), is_maker("lora_unet_down_blocks_0_resnets_0_conv1")
        (False, False)
    """
    path = split_stem(name)[1] if is_stem(name) else bare(name)
    return "diffusion_model." in name or _NET.fullmatch(name) is not None or _MAKERS.fullmatch(path) is not None


def split_stem(stem: str) -> tuple[tuple[str, ...], str]:
    """The components that one of kohya's stems can mean, and the rest of it.

    Example:
        >>> split_stem("lora_te2_text_model_final")
        (('text_encoder_2',), 'text_model_final')
    """
    prefix = next(prefix for prefix in STEMS if stem.startswith(prefix))
    return STEMS[prefix], stem.removeprefix(prefix)


def beginning(name: str) -> str:
    """What the names of a module's component begin with, where its name says that; else nothing.

    Example:
        >>> beginning("lora_te_text_model_final"), beginning("text_encoder.text_model.final"), beginning("model.final")
        ('lora_te_', 'text_encoder.', '')
    """
    if is_stem(name):
        return next(prefix for prefix in STEMS if name.startswith(prefix))
    first = name.partition(".")[0]
    return f"{first}." if first in COMPONENTS and not _LANGUAGE.fullmatch(name) else ""


def in_files(name: str) -> str:
    """A module of a pipeline as files of it have it: with CLIP's `text_model`, which transformers left out in 5.6.

    Example:
        >>> in_files("text_encoder.encoder.layers.0.mlp.fc1")
        'text_encoder.text_model.encoder.layers.0.mlp.fc1'
    """
    return _CLIP.sub(r"\1text_model.", name)


def underscored(name: str) -> str:
    """A path as kohya writes it."""
    return name.replace(".", "_")


def component_of(name: str) -> tuple[str, str] | None:
    """The component of a pipeline that a dotted name belongs to, and its path in it; None where it says neither.

    Example:
        >>> component_of("unet.mid_block.resnets.0.conv1"), component_of("down_blocks.0.resnets.0.conv1")
        (('unet', 'mid_block.resnets.0.conv1'), ('unet', 'down_blocks.0.resnets.0.conv1'))
        >>> component_of("model.layers.0.self_attn.q_proj") is None
        True
    """
    first, _, rest = name.partition(".")
    if first in COMPONENTS and rest and not _LANGUAGE.fullmatch(name):
        return first, rest
    return next(((component, name) for component, pattern in _BARE if pattern.fullmatch(name)), None)


def placed(module: str, base: Mapping[str, Any], path: Path) -> str:
    """A module with its component before it, as files have it: by its name, or else by the class of the base.

    Args:
        module: its name.
        base: the base's configuration; empty where none was given.
        path: what is being written, for errors.

    Returns:
        The name as it is where neither says it.

    Raises:
        AdapterError: the base is one of the text encoders of a pipeline, and nothing says which.
    """
    if is_stem(module) or is_maker(module):
        return module
    found = component_of(bare(module))
    kind = str(base.get("_class_name") or "")
    if base.get("model_type") == "clip_text_model" and (found is None or found[1] == module):
        if base.get("architectures") != ["CLIPTextModel"]:  # which is the first one of all pipelines that have it
            raise AdapterError(
                f"writing {path}: the base is a text encoder, and nothing says which one of a pipeline's it is; give "
                f"the whole pipeline as the base, or choose format='peft'"
            )
        found = "text_encoder", module
    elif found is None and ("UNet" in kind or "Transformer" in kind):
        found = "unet" if "UNet" in kind else "transformer", module
    return module if found is None else in_files(".".join(found))


def kohya_stems(
    modules: Collection[str], path: Path, kept: bool = False, base: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """What each module is called in one of kohya's files.

    Args:
        modules: the names, kohya's own, ComfyUI's, or those of a pipeline's components.
        path: what is being written, for errors.
        kept: whether ComfyUI's names with dots stay as they are. Default: False.
        base: the base's configuration, which says whether its makers call a transformer's modules as diffusers does; by
            default their names say it.

    Raises:
        AdapterError: a name is of another kind, or two would be called the same.
    """
    parts = {module: component_of(bare(module)) for module in modules}
    several = {found[0] for found in parts.values() if found} & {"transformer", "text_encoder_2", "text_encoder_3"}
    inside = [found[1] for found in parts.values() if found and found[0] == "transformer"]
    kind = str((base or {}).get("_class_name") or "")
    alike = _ALIKE_BASES.fullmatch(kind) if kind else any(map(_ALIKE.fullmatch, inside))
    prefixes = {
        "unet": "lora_unet_",
        "transformer": "lora_unet_" if alike else "lora_transformer_",
        "text_encoder": "lora_te1_" if several else "lora_te_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    }
    stems: dict[str, str] = {}
    for module, found in parts.items():
        inner = bare(module)
        if is_stem(module) or (kept and inner != module):
            stems[module] = module
        elif is_maker(module):
            stems[module] = f"lora_unet_{underscored(inner)}"
        elif found is not None and found[0] in prefixes:
            stems[module] = prefixes[found[0]] + underscored(in_files(inner).removeprefix(f"{found[0]}."))
        else:
            raise AdapterError(
                f"writing {path} in kohya's format: the module {module!r} is of no diffusion model (no unet, no "
                f"transformer, no text encoder of one), and only their LoRAs are in such files; choose another format"
            )
    return unique(stems, path)


def unique(names: dict[str, str], path: Path) -> dict[str, str]:
    """The names themselves, each of them once.

    Raises:
        AdapterError: two modules would be called the same.
    """
    owners: dict[str, str] = {}
    for module, name in names.items():
        if name in owners:
            raise AdapterError(
                f"writing {path}: the modules {owners[name]!r} and {module!r} would both be called {name!r} there; "
                f"choose another format"
            )
        owners[name] = module
    return names


def of_one_model(modules: Collection[str], path: Path, kept: bool = True) -> dict[str, str]:
    """What each module is called in the model that it is a module of, for formats that hold one model.

    Args:
        modules: the names.
        path: what is being written, for errors.
        kept: whether what stands before the names of a diffusion model's modules is the model's, and no trainer's.
            Default: True.

    Raises:
        AdapterError: they are of several components of a pipeline, or kohya's, which do not say where dots belong.
    """
    stems = [module for module in modules if is_stem(module)]
    if stems:
        raise AdapterError(
            f"writing {path}: the module {min(stems)!r} is named as kohya does, and the format needs the model's own "
            f"names, which '_' for '.' does not tell; give base=, the model that has them, or choose format='kohya'"
        )
    llama = [module for module in modules if module.startswith("blk.")]
    if llama:
        raise AdapterError(
            f"writing {path}: the module {min(llama)!r} is named as llama.cpp does, and the format needs the model's "
            f"own names; give base=, the model that has them, or choose format='gguf'"
        )
    trainers = _PEFTS if kept or not any(map(is_of_diffusion, modules)) else _BEFORE
    named = {module: trainers.sub("", module) for module in modules}
    parts = {module: component_of(inner) for module, inner in named.items()}
    found = {part[0] for module, part in parts.items() if part and part[1] != named[module]}
    plain = [module for module, part in parts.items() if part is None]
    beside = [module for module in plain if module.startswith("text_encoders.")]  # ComfyUI's
    if len(found) > 1 or (found and plain) or (beside and len(beside) < len(parts)):
        listed = ", ".join([*sorted(found), *(beside or plain)[:1]])
        raise AdapterError(
            f"writing {path}: the adapter has modules of {listed}, and the format holds one model; choose "
            f"format='diffusers' or 'kohya'"
        )
    return unique(named if not found else {module: part[1] for module, part in parts.items() if part}, path)
