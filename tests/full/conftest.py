"""Tiny herds of checkpoints, each made once."""

import pytest
import torch
from herd import make_herd


@pytest.fixture(scope="session")
def herd_of(tmp_path_factory):
    made = {}

    def get(family, dtype=torch.float64):
        if (family, dtype) not in made:
            made[family, dtype] = make_herd(family, tmp_path_factory.mktemp(family), dtype)
        return made[family, dtype]

    return get


@pytest.fixture
def llama(herd_of):
    return herd_of("llama")
