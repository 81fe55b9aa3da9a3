"""How fused projections and grouped heads are taken apart, against the modelling code of transformers itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graph_zoo import ZOO
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import repeat_kv

from samerge.graph import Gather, build_graph

ANIMALS = {animal.name: animal for animal in ZOO}

# The attention that the model itself calls is replaced by one that looks at its q, k and v.
PROBED = {
    "gpt2": "h.0.attn.c_attn",
    "gpt_bigcode": "h.0.attn.c_attn",
    "gpt_bigcode multi-query": "h.0.attn.c_attn",
    "gpt_neox": "layers.0.attention.query_key_value",
    "phi3": "layers.0.self_attn.qkv_proj",
    "modernbert": "layers.0.attn.Wqkv",
}


def graph_of(model):
    return build_graph(model.config.to_dict(), {name: tuple(p.shape) for name, p in model.named_parameters()})


def gathered(model, module: str) -> list[list[int]]:
    """The index arrays that lead out of the output of a module of layer 0, in the order of the edges."""
    stream = f"layers.0/{module.split('.0.', 1)[1]}.out"
    return [list(edge.index) for edge in graph_of(model).edges if isinstance(edge, Gather) and edge.source == stream]


def numbered(module: torch.nn.Module) -> None:
    """Make a module answer 0, 1, 2, ... whatever it reads."""

    def answer(module, args, output):
        return torch.arange(output.shape[-1], dtype=output.dtype).expand(output.shape)

    module.register_forward_hook(answer)


def heads_in_order(x: torch.Tensor, heads: int) -> list[int]:
    """(1, its heads, 1, head_dim) -> the numbers as the output projection reads them, heads repeated."""
    return repeat_kv(x, heads // x.shape[1]).transpose(1, 2).reshape(-1).long().tolist()


def probe(animal, numbered_modules) -> list[SimpleNamespace]:
    """Run a model on one token (at position 0 rotary embeddings change nothing) and note q, k and v of each layer."""
    model = animal.build()
    seen = []

    def look(module, query, key, value, attention_mask, **_):
        seen.append(SimpleNamespace(query=query.detach(), key=key.detach(), value=value.detach()))
        return torch.zeros(1, 1, query.shape[1], query.shape[-1]), None

    AttentionInterface.register("samerge_probe", look)
    model.set_attn_implementation("samerge_probe")
    for name in numbered_modules:
        numbered(model.get_submodule(name))
    with torch.no_grad():
        model(input_ids=torch.tensor([[5]]))
    return seen


@pytest.mark.parametrize("name", PROBED)
def test_fused_projections_split_as_the_model_splits_them(name):
    animal = ANIMALS[name]
    seen = probe(animal, [PROBED[name]])[0]
    heads = seen.query.shape[1]
    expected = [heads_in_order(x, heads) for x in (seen.query, seen.key, seen.value)]
    assert gathered(animal.build(), PROBED[name]) == expected


@pytest.mark.parametrize("name", ["llama", "qwen2", "starcoder2", "mixtral"])
def test_grouped_heads_repeat_as_the_model_repeats_them(name):
    animal = ANIMALS[name]
    for which in ("key", "value"):
        module = f"layers.0.self_attn.{which[0]}_proj"
        seen = probe(animal, [module])[0]
        assert seen.key.shape[1] < seen.query.shape[1]
        assert gathered(animal.build(), module) == [heads_in_order(getattr(seen, which), seen.query.shape[1])]


@pytest.mark.parametrize("name", ["falcon new", "falcon multi-query", "falcon alibi"])
def test_falcon_splits_in_its_three_layouts(name):
    model = ANIMALS[name].build()
    attention = model.h[0].self_attention
    total = attention.query_key_value.weight.shape[0]
    parts = attention._split_heads(torch.arange(total).view(1, 1, total))  # (1, 1, heads, head_dim) each
    expected = [heads_in_order(part.transpose(1, 2), attention.num_heads) for part in parts]
    assert gathered(model, "h.0.self_attention.query_key_value") == expected


def test_bloom_splits_head_by_head():
    model = ANIMALS["bloom"].build()
    parts = model.h[0].self_attention._reshape(torch.arange(48).view(1, 1, 48))
    assert gathered(model, "h.0.self_attention.query_key_value") == [heads_in_order(part, 4) for part in parts]


def test_deberta_splits_head_by_head():
    model = ANIMALS["deberta"].build()
    attention = model.encoder.layer[0].attention.self
    parts = attention.transpose_for_scores(torch.arange(48).view(1, 1, 48)).chunk(3, dim=-1)
    assert gathered(model, "encoder.layer.0.attention.self.in_proj") == [heads_in_order(part, 4) for part in parts]


@pytest.mark.parametrize(
    ("name", "fused", "out"),
    [
        ("mpt", "blocks.0.attn.Wqkv", "blocks.0.attn.out_proj"),
        ("persimmon", "layers.0.self_attn.query_key_value", "layers.0.self_attn.dense"),
        ("falcon new", "h.0.self_attention.query_key_value", "h.0.self_attention.dense"),
        ("deberta", "encoder.layer.0.attention.self.in_proj", "encoder.layer.0.attention.output.dense"),
        ("phi3", "layers.0.self_attn.qkv_proj", "layers.0.self_attn.o_proj"),
    ],
)
def test_with_one_token_the_output_projection_reads_the_values(name, fused, out):
    model = ANIMALS[name].build()
    numbered(model.get_submodule(fused))
    read = []
    model.get_submodule(out).register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    with torch.no_grad():
        # Deberta adds a bias to its values after the split.
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("v_bias"):
                parameter.zero_()
        model(input_ids=torch.tensor([[5]]))
    query, key, value = gathered(model, fused)
    assert read[0].reshape(-1).tolist() == value
    assert query == sorted(query)
    assert not set(query) & set(key)
    assert not set(key) & set(value)


@pytest.mark.parametrize(
    ("name", "fused", "down", "act"),
    [
        ("phi3", "layers.0.mlp.gate_up_proj", "layers.0.mlp.down_proj", torch.nn.functional.silu),
        ("glm", "layers.0.mlp.gate_up_proj", "layers.0.mlp.down_proj", torch.nn.functional.silu),
        ("modernbert", "layers.0.mlp.Wi", "layers.0.mlp.Wo", torch.nn.functional.gelu),
    ],
)
def test_gate_and_up_meet_at_the_same_place(name, fused, down, act):
    model = ANIMALS[name].build()
    wide, narrow = [], []
    model.get_submodule(fused).register_forward_hook(lambda _, args, output: wide.append(output.detach()))
    model.get_submodule(down).register_forward_pre_hook(lambda _, args: narrow.append(args[0].detach()))
    with torch.no_grad():
        model(input_ids=torch.tensor([[5]]))
    gate, up = gathered(model, fused)
    both = wide[0].reshape(-1)
    torch.testing.assert_close(narrow[0].reshape(-1), act(both[gate]) * both[up])


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral"])
def test_experts_pair_gate_and_up_as_the_model_does(name):
    """The derivative of hidden unit i of expert 1 lives in two outputs of its gate_up: those that meet in i."""
    model = ANIMALS[name].build()
    graph = graph_of(model)
    experts = model.layers[0].mlp.experts
    transposed = name == "gpt_oss"  # (E, in, out) there, (E, out, in) else
    stack = experts.gate_up_proj
    hidden = experts.down_proj.shape[1 if transposed else 2]
    units = range(min(16, hidden))
    with torch.no_grad():  # unit i of the hidden layer becomes output i
        experts.down_proj.zero_()
        experts.down_proj[1, units, units] = 1.0
    x = torch.randn(1, 16)
    pairs = []
    for unit in units:
        stack.grad = None
        experts(x, torch.tensor([[1]]), torch.ones(1, 1)).reshape(-1)[unit].backward()
        touched = stack.grad[1].abs().sum(0 if transposed else 1).nonzero().reshape(-1)
        pairs.append(touched.tolist())
    gate, up = (
        edge.index
        for edge in graph.edges
        if isinstance(edge, Gather) and edge.source == "layers.0/mlp.experts.gate_up_proj.1.out"
    )
    assert pairs == [sorted(pair) for pair in zip(gate.tolist(), up.tolist(), strict=True)][: len(pairs)]
    assert len(np.unique(np.concatenate([gate, up]))) == 2 * hidden
