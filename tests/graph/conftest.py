"""Models of the zoo, each built once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from graph_zoo import ZOO, Animal, saved
from packaging.version import Version

#: Families that transformers 5.10, the oldest that is admitted, lacks or builds of other modules in memory.
LATER = ("granitemoe", "internlm3")


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models this small run ten times slower on several threads when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=ZOO, ids=lambda animal: animal.name)
def animal(request) -> Animal:
    if request.param.model_type in LATER and Version(transformers.__version__) < Version("5.24"):
        pytest.skip(f"transformers before 5.24 may not have {request.param.model_type} as it is today")
    return request.param


@pytest.fixture(scope="session")
def model(animal) -> transformers.PreTrainedModel:
    return animal.build()


@pytest.fixture(scope="session")
def in_memory(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}


@pytest.fixture(scope="session")
def on_disk(model) -> dict[str, np.ndarray]:
    return saved(model)
