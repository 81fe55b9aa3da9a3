"""Stand-ins of what is on the Hub: tiny models, tokenizers and adapters in the layout of the Hub's cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def repository(cache: Path, repo_id: str) -> Path:
    """The folder of a repository's one snapshot."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    (root / "snapshots" / "0123abc").mkdir(parents=True)
    return root / "snapshots" / "0123abc"


def tokenizer(texts: Iterable[str], folder: Path, *, start: str = "", end: str = "") -> PreTrainedTokenizerFast:
    """Save a tokenizer whose tokens are the texts' words; 0 pads, 1 ends, 2 starts, 3 is unknown."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    words = sorted({word for text in texts for word in text.split()})
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single=[part for part in (start, "$A", end) if part],
        pair=[part for part in (start, "$A", start, "$B", end) if part],
        special_tokens=[("</s>", 1), ("<s>", 2)],
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    made.save_pretrained(folder)
    return made


def adapter(
    model: Any, folder: Path, targets: Sequence[str], seed: int, task: str | None = None, size: float = 0.3
) -> None:
    """A random adapter that PEFT saves: rank 4, every B non-zero, of that standard deviation."""
    torch.manual_seed(seed)
    made: PeftModel = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type=task))
    for name, parameter in made.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=size)
    made.save_pretrained(folder, save_embedding_layers=False)
    made.unload()


def pickled(folder: Path) -> None:
    """Turn an adapter into the older, pickled format."""
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
