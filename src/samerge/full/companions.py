"""What lies in a model's folder beside its weights: configuration, tokenizer, processor, code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from samerge.full.given_models import Opened
from samerge.weights.inside_peft import unwrap

#: Endings of weights, and of what training left behind.
_HEAVY = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".mlmodel"),
    *(".tflite", ".npz", ".pkl", ".index.json"),
)

#: Not of the merged model: its own record and card are written, and an adapter in the folder is not merged.
_NOT_OURS = frozenset(
    {"config.json", "README.md", "samerge.json", "adapter_config.json", "trainer_state.json", "all_results.json"}
    | {"train_results.json", "eval_results.json"}
)

#: The largest tokenizers take some 30 MB.
_LARGEST = 100 * 2**20


def write_companions(folder: Path, base: Opened, dtype: torch.dtype | None) -> None:
    """Write the base's configuration and copy what belongs to it.

    Args:
        folder: the merged model's.
        base: the base.
        dtype: of the output, None for the base's own.
    """
    if base.model is not None:
        inner: Any = unwrap(base.model)
        for part in ("config", "generation_config"):
            settings: Any = getattr(inner, part, None)
            if hasattr(settings, "save_pretrained"):
                settings.save_pretrained(folder)
    elif base.folder is not None:
        for path in sorted(base.folder.iterdir()):
            small = path.is_file() and path.stat().st_size <= _LARGEST
            if small and _belongs(path.name):
                shutil.copyfile(path, folder / path.name)
    text = json.dumps(_settings(base.source.config, dtype), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _belongs(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_OURS and not name.endswith(_HEAVY)


def _settings(config: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The configuration, of the output's dtype, and not quantised."""
    settings = {key: value for key, value in config.items() if key != "quantization_config"}
    if dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in settings] or ["torch_dtype"]
        settings.update(dict.fromkeys(keys, dtype))
    return {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in settings.items()}
