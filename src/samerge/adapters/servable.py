"""The servable profile: what an adapter must look like so that PEFT, vLLM, SGLang, LoRAX and llama.cpp all serve it.

One rank for every module (zero components appended, which is exact), `lora_alpha == r`, no patterns, every layer
present for each type of module, `target_modules` sorted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.layouts import Layout
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors
from samerge.options.module_names import joined, layer_numbers, module_type

#: What must be adapted where a module of this name is.
_PARTNERS = {"q_proj": ("v_proj",), "k_proj": ("q_proj", "v_proj"), "v_proj": ("q_proj",), "up_proj": ("gate_proj",)}


def settings(base: str | None, rank: int, modules: Sequence[str], layouts: Iterable[Layout]) -> dict[str, Any]:
    """`adapter_config.json` of a plain LoRA in the servable profile.

    Args:
        base: name of the base model.
        rank: of every module.
        modules: the target modules.
        layouts: of all modules.
    """
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "fan_in_fan_out": any(layout.kind == "linear" and layout.transposed for layout in layouts),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def cast(module: str, factors: LoraFactors, dtype: torch.dtype) -> LoraFactors:
    """The factors of one module in the dtype of the output.

    Raises:
        AdapterError: they are too large for it.

    Example:
        >>> cast("proj", LoraFactors(torch.ones(1, 3), torch.ones(2, 1)), torch.float16).B.dtype
        torch.float16
    """
    found = factors.to(dtype=dtype)
    check_finite(f"{module}.lora_A", found.A)
    check_finite(f"{module}.lora_B", found.B)
    return found


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a tensor of the output that holds NaN or infinite values, such as what a cast to float16 leaves.

    Raises:
        AdapterError: it does; says the way out.
    """
    if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(torch.isfinite(tensor).all()):
        ends = torch.finfo(tensor.dtype).max < torch.finfo(torch.bfloat16).max  # all wider ones end where float32 does
        wider = "use dtype='float32' or 'bfloat16', or " if ends else ""
        raise AdapterError(
            f"making the adapter: {name} {tuple(tensor.shape)} holds values that are not finite in {tensor.dtype}; "
            f"{wider}choose smaller weights or a smaller scaling, and check the inputs"
        )


def siblings(adapted: Collection[str], stems: Iterable[str]) -> list[str]:
    """Modules of the same types as the adapted ones, in the layers that no adapter adapts, sorted.

    Args:
        adapted: names of the adapted modules.
        stems: names of all modules of the base, as the adapted ones are named.

    Example:
        >>> siblings(["layers.0.q"], ["layers.0.q", "layers.1.q", "layers.1.k"])
        ['layers.1.q']
    """
    types = {module_type(module) for module in adapted}
    return sorted(stem for stem in stems if stem not in adapted and module_type(stem) in types)


def partners(adapted: Collection[str]) -> list[str]:
    """Modules that a server stacks with adapted ones, and does not do without: v with q, both with k, gate with up.

    SGLang stacks q, k and v, and gate and up, into one product. Where k is missing it takes zeros, and for up likewise.

    Example:
        >>> partners(["h.0.k_proj", "h.0.up_proj", "h.1.q_proj", "h.1.v_proj"])
        ['h.0.gate_proj', 'h.0.q_proj', 'h.0.v_proj']
    """
    needed = {
        joined(stem, partner)
        for stem, _, last in (module.rpartition(".") for module in adapted)
        for partner in _PARTNERS.get(last, ())
    }
    return sorted(needed - set(adapted))


def target_modules(adapted: Collection[str], others: Collection[str]) -> list[str]:
    """The shortest names that mean exactly the adapted modules to PEFT, which matches whole names and dotted endings.

    Args:
        adapted: names of the adapted modules.
        others: names of all other modules of the base with a weight of their own.

    Returns:
        Sorted: `q_proj` where every q_proj is adapted, `output.dense` where a `dense` elsewhere is not, whole names
        where no ending without a layer number will do.

    Example:
        >>> target_modules(["h.0.output.dense", "h.1.output.dense"], ["pooler.dense"])
        ['output.dense']
    """
    forbidden = {tail for module in others for tail in _tails(module)}
    chosen = set()
    for module in adapted:
        good = (tail for tail in _tails(module) if tail not in forbidden and not layer_numbers(f"x.{tail}"))
        chosen.add(next(good, module))
    return sorted(chosen)


def _tails(module: str) -> list[str]:
    """The dotted endings of a name, shortest first, itself last."""
    parts = module.split(".")
    return [".".join(parts[cut:]) for cut in range(len(parts) - 1, -1, -1)]
