"""What is not a plain LoRA, and what to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samerge.errors import AdapterError

#: Fields of a LoraConfig that say how an adapter was trained or found, not what it computes.
_HARMLESS = frozenset(
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
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "use_rslora",
        "layers_to_transform",
        "layers_pattern",
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
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")

_ADVICE = {
    "use_dora": "it is a DoRA adapter: its update also rescales the base weights by a learned magnitude. Merge it into "
    "its base model with merge_and_unload(), or retrain it without DoRA",
    "modules_to_save": "it carries fully trained modules beside the LoRA factors; a merged LoRA cannot hold them",
    "trainable_token_indices": "it carries trained token embeddings beside the LoRA factors",
    "target_parameters": "it adapts nn.Parameters directly",
    "lora_bias": "it has biases in lora_B",
    "layer_replication": "it was trained on a model with replicated layers",
}


def refuse_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuse every configuration that is not a plain LoRA.

    Raises:
        AdapterError: names the adapter, the variant, and the way out.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"reading adapter {name!r}: it is a {kind} adapter; samerge merges LoRA adapters")
    for needed in ("r", "lora_alpha"):
        if needed not in config:
            raise AdapterError(f"reading adapter {name!r}: its configuration has no {needed!r}")
    initial = config.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower().startswith(_MUTATING):
        raise AdapterError(
            f"reading adapter {name!r}: it was initialised with {initial!r}, which changed the base weights it was "
            f"trained on. Convert it to a plain LoRA first: save_pretrained(..., "
            f"path_initial_model_for_weight_conversion=<the initial adapter>), as PEFT's documentation describes"
        )
    bias = config.get("bias", "none")
    if bias != "none":
        raise AdapterError(f"reading adapter {name!r}: it trained biases of the base model (bias={bias!r})")
    for key, value in config.items():
        if key in _HARMLESS or key in ("init_lora_weights", "bias") or not value:
            continue
        advice = _ADVICE.get(key, "this variant of LoRA is not known to samerge, and merging it blindly would be wrong")
        raise AdapterError(f"reading adapter {name!r}: its configuration sets {key}={value!r}: {advice}")


def refuse_keys(name: str, keys: Sequence[str]) -> None:
    """Refuse tensors in an adapter's file that are neither lora_A nor lora_B.

    Raises:
        AdapterError: names the first few.
    """
    if keys:
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise AdapterError(
            f"reading adapter {name!r}: its file also holds {', '.join(keys[:4])}{more}, which are not LoRA factors; "
            f"leaving them out would change what the adapter does"
        )
