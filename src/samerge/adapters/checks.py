"""Kinds of adapter that cannot be merged, and what to say about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samerge.errors import AdapterError

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
_MUTATING = ("pissa", "olora", "corda", "lora_ga")

_PROMPTS = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"})

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
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        way = (
            "It changes the prompt and no weight: use it beside a merged LoRA, it cannot be merged into one"
            if kind in _PROMPTS
            else "Make a LoRA of it first: peft.save_as_lora(folder, model, rank=...) converts LoHa, LoKr, VeRA and "
            "others; or merge it into its base with merge_and_unload()"
        )
        raise AdapterError(f"reading adapter {name!r}: it is a {kind} adapter; samerge merges LoRA adapters. {way}")
    for needed in ("r", "lora_alpha"):
        if needed not in config:
            raise AdapterError(f"reading adapter {name!r}: its configuration has no {needed!r}")
    initial = str(config.get("init_lora_weights", True)).lower()
    if initial.startswith(_MUTATING):
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
    for key, value in config.items():
        if key in _KNOWN or not value:
            continue
        way = _VARIANTS.get(key, "this variant of LoRA is not known to samerge, and merging it blindly would be wrong")
        raise AdapterError(f"reading adapter {name!r}: its configuration sets {key}={value!r}: {way}")


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
