"""Families whose linear layers are `transformers.pytorch_utils.Conv1D`, which store their weights (in, out)."""

from __future__ import annotations

#: Their `model_type`s.
CONV1D_FAMILIES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "gptsan-japanese"})
_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})


def is_conv1d(model_type: object, module: str) -> bool:
    """Whether a module is a Conv1D, by its family and its name.

    Example:
        >>> is_conv1d("gpt2", "h.0.attn.c_attn"), is_conv1d("gpt2", "lm_head"), is_conv1d("bert", "c_fc")
        (True, False, False)
    """
    return model_type in CONV1D_FAMILIES and module.rpartition(".")[2] in _MODULES
