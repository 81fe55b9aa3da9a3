"""Models, adapters and rows from the Hub. They go to the Hub's own cache; a second run downloads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from suites.base import Suite
from torch import Tensor

Rows = Sequence[Mapping[str, Any]]


def snapshot(repo_id: str, *patterns: str) -> Path:
    """The files of a model's repository.

    Args:
        repo_id: on the Hub.
        patterns: only files whose name matches one of them; all by default.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id, allow_patterns=list(patterns) or None))


def rows(path: str, name: str | None, split: str, revision: str | None = None) -> Rows:
    """The rows of one split of a data set, by the `datasets` library, in their own order.

    Args:
        path: on the Hub.
        name: of the configuration, None where there is one alone.
        split: which.
        revision: None for the newest.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"the rows of {path} are read by `datasets`: pip install -e '.[benchmarks]'") from error
    found: Rows = load_dataset(path, name, split=split, revision=revision)
    return found


def head_file(folder: Path) -> Path:
    """Where the trained head of an adapter's copy is, if it has one: not in its folder, where it would be merged."""
    return folder.with_name(f"{folder.name}.head.safetensors")


def copy_adapter(repo_id: str, folder: Path) -> None:
    """An adapter of the Hub as a folder that holds its LoRA factors as safetensors; a trained head goes to `head_file`.

    Older adapters are pickled files, which samerge does not open; they are read here as weights alone.
    """
    source = snapshot(repo_id, "adapter_*")
    file = source / "adapter_model.safetensors"
    if file.is_file():
        from safetensors.torch import load_file

        tensors = load_file(file)
    else:
        tensors = torch.load(source / "adapter_model.bin", map_location="cpu", weights_only=True)
    from safetensors.torch import save_file

    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, value in tensors.items():
        parts["lora_" in name][name] = value.contiguous()
    head, factors = parts
    if not factors:
        raise ValueError(f"{repo_id} holds no LoRA factors, but {', '.join(sorted(tensors)[:3])}")
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    if head:
        save_file(head, head_file(folder))
        config |= {"task_type": None, "modules_to_save": None}  # heads are not merged: every task keeps its own
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(factors, folder / "adapter_model.safetensors")  # last, as its being there says that all is


@dataclass(frozen=True, kw_only=True)
class PublicSuite(Suite):
    """A suite whose adapters are on the Hub. All rows are asked, as the source does, unless a number is given."""

    #: The Hub's name of a task's adapter, {} for the task.
    adapter_id: ClassVar[str]
    #: Whether a merge's score on a task is told in per cent of the score of the task's own adapter.
    normalised: ClassVar[bool]
    items: ClassVar[int] = 1 << 30

    def train_adapter(self, task: str, folder: Path) -> None:
        copy_adapter(self.adapter_id.format(task), folder)


def device() -> torch.device:
    """Where evaluators compute: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
