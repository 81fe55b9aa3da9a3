"""Kinds of adapter that cannot be merged, and what to say about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from samerge.adapters.settings import check_settings
from samerge.errors import AdapterError
from samerge.weights.fields import shown

#: The newest PEFT whose fields of a LoraConfig are all named below.
_NEWEST_PEFT = (0, 21)

#: Fields of a LoraConfig that say how an adapter was trained or found, or that are dealt with elsewhere.
_KNOWN = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "lora_bias",
        "use_rslora",
        "use_dora",
        "modules_to_save",
        "trainable_token_indices",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "layer_replication",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "eva_config",
        "loftq_config",
        "corda_config",
        "lora_ga_config",
        "ensure_weight_tying",
        "velora_config",
    }
)

#: Initialisations that change the base weights when the adapter is made, so that B A alone is not the update.
MUTATING = ("pissa", "olora", "corda", "lora_ga")

_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"}
)
#: Those that are read as LoRA from their folder (`adapters/formats/`), but not from a live model.
_READ = frozenset({"ADALORA", "LOHA", "LOKR"})
#: Those that `peft.save_as_lora` can turn into a LoRA.
_CONVERTIBLE = frozenset(
    {"VERA", "C3A", "DELORA", "GRALORA", "MISS", "PSOFT", "RANDLORA", "TINYLORA", "UNILORA", "VBLORA"}
    | {"FOURIERFT", "WAVEFT"}
)

_VARIANTS = {
    "alora_invocation_tokens": "an activated LoRA works only behind its invocation tokens, so its update is no update "
    "of a weight. Serve it as it is",
    "kasa_config": "KaSA changes the base weights when it is loaded. Merge it into its base with merge_and_unload()",
    "use_qalora": "QA-LoRA pools the input before lora_A, so B A is not the update of the weight",
    "use_bdlora": "block-diagonal LoRA stores its factors in blocks. Merge it into its base with merge_and_unload()",
    "arrow_config": "it routes between other adapters and has no update of its own. Merge those",
    "monteclora_config": "its factors are drawn from a distribution",
    "megatron_config": "it was trained on Megatron's parallel layers. Save it with PEFT on the plain model",
}


def refuse_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuse what no option can make a LoRA of.

    Raises:
        AdapterError: names the adapter, the kind, and the way out.
    """
    _refuse_kind(name, config)
    check_settings(name, config)
    initial = str(config.get("init_lora_weights", True)).lower()
    if initial.startswith(MUTATING):
        raise AdapterError(
            f"reading adapter {name!r}: it was initialised with {config['init_lora_weights']!r}, which changed the "
            f"base weights it was trained on, so its factors are no update of the base. Convert it to a plain LoRA: "
            f"load it with PEFT and call save_pretrained(folder, path_initial_model_for_weight_conversion=<folder of "
            f"the adapter as it was before training>), as PEFT's documentation of this initialisation describes"
        )
    if initial.startswith("loftq"):
        raise AdapterError(
            f"reading adapter {name!r}: it was initialised with 'loftq', so it belongs to the quantised base weights "
            f"that LoftQ made, not to the model it came from. Give that base (saved with "
            f'model.get_base_model().save_pretrained) as the base, and set "init_lora_weights": true in the '
            f"adapter's configuration, as PEFT's documentation of LoftQ describes"
        )
    for key in strange_fields(config):
        told = f"its configuration sets {key}={shown(config[key])}"
        if key in _VARIANTS:
            raise AdapterError(f"reading adapter {name!r}: {told}: {_VARIANTS[key]}")
        if _version(config) > _NEWEST_PEFT:
            raise AdapterError(
                f"reading adapter {name!r}: {told}: this field of PEFT {config['peft_version']} is not known to "
                f"samerge, and merging it blindly would be wrong. If it changes nothing, remove it from the file"
            )


def strange_fields(config: Mapping[str, Any]) -> list[str]:
    """The fields that are set and are none of a plain LoRA's. PEFT ignores those that it does not know either."""
    return [key for key, value in config.items() if value and key not in _KNOWN]


def _version(config: Mapping[str, Any]) -> tuple[int, int]:
    """The PEFT that wrote a configuration; the first where it does not say."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", config.get("peft_version") or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _refuse_kind(name: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind == "LORA":
        return
    if not isinstance(kind, str):
        raise AdapterError(
            f"reading adapter {name!r}: its configuration names no peft_type, so that PEFT did not write it; convert "
            f"the adapter to PEFT's format with the tool that it comes from"
        )
    if kind in _READ:
        way = "Saved, it is read from its folder: give that in place of its name"
    elif kind in _PROMPTS:
        way = "It changes the prompt and no weight: use it beside a merged LoRA, it cannot be merged into one"
    elif kind in _CONVERTIBLE:
        way = (
            "Make a LoRA of it first with peft.save_as_lora(folder, model, rank=...), or merge it into its base with "
            "merge_and_unload()"
        )
    else:
        way = (
            "PEFT cannot make a LoRA of it. Merge it into its base with merge_and_unload(), and turn the result into a "
            "LoRA with samerge extract"
        )
    raise AdapterError(f"reading adapter {name!r}: it is a {kind[:40]} adapter; samerge merges LoRA adapters. {way}")


def refuse_live(name: str, config: Mapping[str, Any]) -> None:
    """Refuse what cannot be read from a live model, though it can from the adapter's folder.

    Raises:
        AdapterError: names the adapter and the way out.
    """
    bias = config.get("bias", "none")
    if bias != "none":
        raise AdapterError(
            f"reading adapter {name!r} of a live model: it trained biases of the base (bias={bias!r}), which PEFT "
            f"keeps in the base model's own parameters, where they can no longer be told from the base. Save the "
            f"adapter and merge the folders: samerge.merge(base, {{{name!r}: folder, ...}})"
        )
