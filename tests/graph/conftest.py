"""Models of the zoo, each built once."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from graph_zoo import ZOO, Animal, saved


@pytest.fixture(scope="session", params=ZOO, ids=lambda animal: animal.name)
def animal(request) -> Animal:
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
