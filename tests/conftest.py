"""Fixtures for all tests: tiny models with adapters, each built once."""

from __future__ import annotations

import os
from collections.abc import Callable

# One thread for each process of the tests, those that they start included: several processes share the cores, and sums
# of one thread come out alike on machines with more cores or fewer. Before torch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
# What the tests start compiles samerge once, and not each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch
from hypothesis import settings
from tiny import SPECIES, Beast, make

# Derandomised: the same examples on every run, so that a red test stays red until it is mended.
settings.register_profile("samerge", deadline=None, max_examples=20, derandomize=True, database=None)
settings.load_profile("samerge")


torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # PEFT asks a transformers model for a property that newer releases of transformers call by another name.
    config.addinivalue_line("filterwarnings", "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own is the same on every run, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Callable[[str], Beast]:
    """A tiny model of a family, by name, with its adapters."""
    made: dict[str, Beast] = {}

    def get(name: str) -> Beast:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(params=sorted(SPECIES))
def beast(request, zoo) -> Beast:
    """Every family in turn."""
    return zoo(request.param)


@pytest.fixture
def llama(zoo) -> Beast:
    return zoo("llama")


@pytest.fixture
def bert(zoo) -> Beast:
    return zoo("bert")
