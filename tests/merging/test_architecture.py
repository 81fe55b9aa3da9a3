"""A config.json that leaves defaults out gives the same graph as one that does not."""

import pytest
from transformers import LlamaConfig, LlamaModel

from samerge.errors import GraphError
from samerge.merging.alignment.architecture import base_graph
from samerge.weights import ModelSource


def test_defaults_left_out_of_the_configuration_are_filled_in() -> None:
    model = LlamaModel(LlamaConfig(hidden_size=64, intermediate_size=32, num_hidden_layers=1, vocab_size=10))
    source = ModelSource(model)  # 32 heads, the default
    expected = base_graph(source)
    source.config = {key: value for key, value in source.config.items() if not key.startswith("num_")}
    source.config |= {"num_hidden_layers": 1}
    assert base_graph(source) == expected


def test_an_unknown_architecture_is_named() -> None:
    source = ModelSource(LlamaModel(LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=10)))
    source.config = {"model_type": "frobnicator"}
    with pytest.raises(GraphError, match="frobnicator"):
        base_graph(source)
