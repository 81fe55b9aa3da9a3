from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from pitfalls.lab import Bench


@pytest.fixture(autouse=True)
def _silence() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """Makes a bench around a base model: `bench(llama, tie_word_embeddings=True)`."""

    def make(factory: Callable[..., nn.Module], **settings: object) -> Bench:
        torch.manual_seed(0)
        return Bench(factory(**settings).eval(), tmp_path)

    return make
