"""Training one LoRA adapter: AdamW, a short warm-up, a rate that falls to nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def shuffled(items: Sequence[Item], size: int, seed: int) -> Iterator[list[Item]]:
    """Batches without end: every pass over the items in another order."""
    random_ = random.Random(seed)
    while True:
        order = list(items)
        random_.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def train_lora(
    model: Any,
    loss: Callable[[int], Tensor],
    folder: Path,
    *,
    name: str,
    targets: Sequence[str],
    seed: int,
    steps: int,
    rate: float,
    rank: int = 16,
    alpha: int = 32,
    report: Callable[[str], None] = print,
) -> None:
    """Put an adapter into `model`, train it and save it in PEFT's format.

    Args:
        model: the base model, changed in place: the adapter's layers are in it afterwards.
        loss: number of the step -> the loss of the step's batch, a scalar that calls the modules of `model`.
        folder: where the adapter goes.
        name: what the adapter's configuration names as its base.
        targets: names of the modules that get factors.
        seed: from which every A is drawn.
        steps: number of steps, one batch each.
        rate: the largest learning rate, reached after a tenth of the steps.
        rank: rank of every factor.
        alpha: LoRA's alpha; the scale is alpha / rank.
        report: takes a line every 25 steps.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))
    parameters = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    recent = []
    for step in range(steps):
        value = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(float(value.detach()))
        if (step + 1) % 25 == 0:
            report(f"{folder.name}: step {step + 1} of {steps}, loss {sum(recent[-25:]) / len(recent[-25:]):.3f}")
    peft.peft_config["default"].base_model_name_or_path = name
    # False: PEFT would otherwise look the base up on the Hub to compare vocabularies.
    peft.save_pretrained(folder, save_embedding_layers=False)
