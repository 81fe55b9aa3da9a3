"""R of small graphs worked out by hand, and what `build_graph` says when it cannot build one."""

from __future__ import annotations

import numpy as np
import pytest
from graph_flow import score
from graph_zoo import ZOO

from samerge.errors import GraphError
from samerge.graph import Weight, build_graph

ANIMALS = {animal.name: animal for animal in ZOO}


def model_of(name: str):
    model = ANIMALS[name].build()
    weights = {key: value.detach().double().numpy() for key, value in model.named_parameters()}
    return model.config.to_dict(), weights


def shapes_of(weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def r_of(name: str, residual: bool) -> tuple[float, dict[str, np.ndarray]]:
    config, weights = model_of(name)
    graph = build_graph(config, shapes_of(weights), residual)
    return score(graph, weights, 16), {key: np.abs(value) for key, value in weights.items()}


def repeated(x: np.ndarray) -> np.ndarray:
    """Two key/value heads of width 6 for four query heads."""
    return np.concatenate([x[:6], x[:6], x[6:], x[6:]])


@pytest.mark.parametrize("residual", [True, False])
def test_llama_by_hand(residual):
    r, w = r_of("llama", residual)
    x = np.ones(16)
    for i in range(2):
        at = f"layers.{i}.self_attn."
        q, k, v = (w[f"{at}{name}_proj.weight"] @ x for name in "qkv")
        y = w[f"{at}o_proj.weight"] @ (q + repeated(k) + repeated(v))
        x = y + x if residual else y
        at = f"layers.{i}.mlp."
        y = w[f"{at}down_proj.weight"] @ (w[f"{at}gate_proj.weight"] @ x + w[f"{at}up_proj.weight"] @ x)
        x = y + x if residual else y
    np.testing.assert_allclose(r, x.sum(), rtol=1e-12)


def test_llama_counts_its_paths():
    """With weights of one R is the number of paths."""
    config, weights = model_of("llama")
    ones = {name: np.ones(weight.shape) for name, weight in weights.items()}
    # Each sub-layer multiplies: 16 inputs times 3 ways (q, k, v) into each of 24 heads' outputs; 16 times 2 into 20.
    per_layer = (16 * 3 * 24) * (16 * 2 * 20)
    assert score(build_graph(config, shapes_of(ones), residual=False), ones, 16) == 16 * per_layer**2
    assert score(build_graph(config, shapes_of(ones)), ones, 16) == 16 * ((16 * 3 * 24 + 1) * (16 * 2 * 20 + 1)) ** 2


@pytest.mark.parametrize("residual", [True, False])
def test_phi_runs_attention_and_mlp_side_by_side(residual):
    r, w = r_of("phi", residual)
    x = np.ones(16)
    for i in range(2):
        at = f"layers.{i}."
        q, k, v = (w[f"{at}self_attn.{name}_proj.weight"] @ x for name in "qkv")
        k, v = (np.concatenate([y[:4], y[:4], y[4:], y[4:]]) for y in (k, v))
        y = w[f"{at}self_attn.dense.weight"] @ (q + k + v)
        y = y + w[f"{at}mlp.fc2.weight"] @ (w[f"{at}mlp.fc1.weight"] @ x)
        x = y + x if residual else y
    np.testing.assert_allclose(r, x.sum(), rtol=1e-12)


@pytest.mark.parametrize("residual", [True, False])
def test_gpt2_stores_its_weights_the_other_way_round(residual):
    r, w = r_of("gpt2", residual)
    x = np.ones(16)
    for i in range(2):
        at = f"h.{i}."
        q, k, v = np.split(x @ w[f"{at}attn.c_attn.weight"], 3)
        y = (q + k + v) @ w[f"{at}attn.c_proj.weight"]
        x = y + x if residual else y
        y = x @ w[f"{at}mlp.c_fc.weight"] @ w[f"{at}mlp.c_proj.weight"]
        x = y + x if residual else y
    np.testing.assert_allclose(r, x.sum(), rtol=1e-12)


@pytest.mark.parametrize("residual", [True, False])
def test_qwen2_moe_sums_its_experts_and_the_shared_one(residual):
    r, w = r_of("qwen2_moe, first layer dense", residual)
    x = np.ones(16)
    for i in range(2):
        at = f"layers.{i}.self_attn."
        q, k, v = (w[f"{at}{name}_proj.weight"] @ x for name in "qkv")
        k, v = (np.concatenate([y[:4], y[:4], y[4:], y[4:]]) for y in (k, v))
        y = w[f"{at}o_proj.weight"] @ (q + k + v)
        x = y + x if residual else y
        at = f"layers.{i}.mlp."
        if i == 0:
            y = w[f"{at}down_proj.weight"] @ (w[f"{at}gate_proj.weight"] @ x + w[f"{at}up_proj.weight"] @ x)
        else:
            shared = f"{at}shared_expert."
            y = w[f"{shared}down_proj.weight"] @ (w[f"{shared}gate_proj.weight"] @ x + w[f"{shared}up_proj.weight"] @ x)
            for e in range(3):
                gate, up = np.split(w[f"{at}experts.gate_up_proj"][e] @ x, 2)
                y = y + w[f"{at}experts.down_proj"][e] @ (gate + up)
        x = y + x if residual else y
    np.testing.assert_allclose(r, x.sum(), rtol=1e-12)


@pytest.mark.parametrize("residual", [True, False])
def test_t5_leads_the_encoder_into_the_keys_and_values_of_the_decoder(residual):
    r, w = r_of("t5", residual)

    def step(x, at, names, memory=None):
        q, k, v, o = (w[f"{at}.{name}.weight"] for name in names)
        read = x if memory is None else memory
        y = o @ (q @ x + k @ read + v @ read)
        return y + x if residual else y

    def mlp(x, at):
        y = w[f"{at}.wo.weight"] @ (w[f"{at}.wi.weight"] @ x)
        return y + x if residual else y

    x = np.ones(16)
    for i in range(2):
        x = step(x, f"encoder.block.{i}.layer.0.SelfAttention", "qkvo")
        x = mlp(x, f"encoder.block.{i}.layer.1.DenseReluDense")
    memory, x = x, np.ones(16)
    for i in range(3):
        x = step(x, f"decoder.block.{i}.layer.0.SelfAttention", "qkvo")
        x = step(x, f"decoder.block.{i}.layer.1.EncDecAttention", "qkvo", memory)
        x = mlp(x, f"decoder.block.{i}.layer.2.DenseReluDense")
    np.testing.assert_allclose(r, x.sum(), rtol=1e-12)


def test_albert_runs_each_layer_of_a_group_over_and_over():
    r, w = r_of("albert", residual=True)
    x = np.ones(16)
    for group in (0, 0, 1, 1):
        for inner in (0, 1):
            at = f"encoder.albert_layer_groups.{group}.albert_layers.{inner}."
            q, k, v = (w[f"{at}attention.{name}.weight"] @ x for name in ("query", "key", "value"))
            x = x + w[f"{at}attention.dense.weight"] @ (q + k + v)
            x = x + w[f"{at}ffn_output.weight"] @ (w[f"{at}ffn.weight"] @ x)
    np.testing.assert_allclose(r, x.sum(), rtol=1e-12)


def test_clip_has_two_inputs_and_two_outputs():
    config, weights = model_of("clip")
    graph = build_graph(config, shapes_of(weights))
    assert graph.inputs == ("text.embeddings", "vision.embeddings")
    assert graph.outputs == ("text.layers.1/mlp", "vision.layers.1/mlp")


# ---- a configuration says less, names differ


@pytest.mark.parametrize(
    ("name", "keys", "last"),
    [
        ("stablelm", ["use_parallel_residual"], "layers.1/mlp"),
        ("gpt_neox", ["use_parallel_residual"], "layers.1/attention+mlp"),
        ("falcon new", ["parallel_attn"], "layers.1/attention+mlp"),
        ("falcon multi-query", ["parallel_attn", "new_decoder_architecture"], "layers.1/attention+mlp"),
    ],
)
def test_a_key_that_is_absent_means_what_it_means_to_transformers(name, keys, last):
    config, weights = model_of(name)
    whole = build_graph(config, shapes_of(weights))
    short = build_graph({key: value for key, value in config.items() if key not in keys}, shapes_of(weights))
    assert short == whole
    assert short.outputs == (last,)


def test_number_of_layers_and_of_heads_may_be_left_out_where_they_are_not_needed():
    _, weights = model_of("bert")
    graph = build_graph({"model_type": "bert"}, shapes_of(weights))
    assert len(graph.tensors) == 12


def test_the_flat_configuration_of_the_first_qwen2_vl_is_understood():
    config, weights = model_of("qwen2_vl")
    flat = {"model_type": "qwen2_vl", "num_hidden_layers": 2, "num_attention_heads": 4}
    assert build_graph(flat, shapes_of(weights)) == build_graph(config, shapes_of(weights))
    with pytest.raises(GraphError, match="says 3 layers"):
        build_graph(flat | {"num_hidden_layers": 3}, shapes_of(weights))


def test_old_names_of_experts_and_dense_layers_may_be_mixed():
    config, weights = model_of("qwen3_moe")
    shapes = shapes_of(weights)
    for name in [name for name in shapes if name.startswith("layers.0.mlp")]:
        del shapes[name]
    shapes |= {f"layers.0.mlp.{name}_proj.weight": (20, 16) for name in ("gate", "up")}
    shapes["layers.0.mlp.down_proj.weight"] = (16, 20)
    graph = build_graph(config, shapes)
    assert "layers.0.mlp.down_proj.weight" in graph.tensors
    assert {edge.expert for edge in graph.edges if isinstance(edge, Weight)} == {None, 0, 1, 2}


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model.", "0.auto_model."])
def test_any_prefix_is_found(prefix):
    config, weights = model_of("llama")
    shapes = {prefix + name: shape for name, shape in shapes_of(weights).items()}
    shapes["lm_head.weight"] = (40, 16)
    graph = build_graph(config, shapes)
    assert len(graph.tensors) == 14
    assert all(name.startswith(f"{prefix}layers.") for name in graph.tensors)


# ---- what goes wrong


def test_an_unknown_family_says_what_was_found_and_the_two_ways_on():
    config = {"model_type": "squid", "architectures": ["SquidForCausalLM"]}
    with pytest.raises(GraphError) as caught:
        build_graph(config, {"arms.0.weight": (8, 8), "arms.1.weight": (8, 8)})
    for said in ("'squid'", "SquidForCausalLM", "arms.0.weight", "llama", 'connectivity="local"', "FlowGraph"):
        assert said in str(caught.value)


def test_a_configuration_without_a_model_type_is_an_unknown_family():
    with pytest.raises(GraphError, match="model_type None"):
        build_graph({}, {"a.weight": (8, 8)})


def test_tensors_of_another_family_are_not_taken_for_this_one():
    _, weights = model_of("gpt2")
    with pytest.raises(GraphError, match=r"layers\.0\.self_attn\.k_proj\.weight.*h\.0\.ln_1\.weight"):
        build_graph({"model_type": "llama"}, shapes_of(weights))


def _without(name):
    return lambda shapes: shapes.pop(name)


def _with(**changed):
    return lambda shapes: shapes.update({name.replace("__", "."): shape for name, shape in changed.items()})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", _without("layers.1.mlp.up_proj.weight"), r"mlp of the layer 'layers\.1\.' lacks .*up_proj\.weight"),
        ("llama", _without("layers.0.self_attn.o_proj.weight"), r"attention of the layer 'layers\.0\.' lacks .*o_proj"),
        ("llama", _with(layers__0__self_attn__extra__weight=(16, 16)), r"does not have: layers\.0\.self_attn\.extra"),
        ("llama", _with(mtp__layers__0__self_attn__q_proj__weight=(24, 16)), r"under the prefixes \['', 'mtp\.'\]"),
        ("llama", _with(layers__5__self_attn__q_proj__weight=(24, 16)), r"have gaps, only \[0, 1, 5\]"),
        ("llama", _with(layers__0__mlp__up_proj__weight=(24, 16)), r"up_proj.weight' of shape \(24, 16\) does not fit"),
        (
            "llama",
            _with(layers__0__self_attn__q_proj__weight=(192, 1)),
            r"does not fit.*after .*q_proj.* \(192, 1\).*4-bit",
        ),
        ("llama", _with(layers__0__mlp__down_proj__weight=(16,)), r"should be a matrix, but its shape is \(16,\)"),
        ("llama", _with(layers__1__self_attn__k_proj__weight=(15, 16)), r"15 outputs .* no groups of 4 heads"),
        ("mixtral", _with(layers__0__mlp__experts__down_proj=(2, 16, 20)), r"as many experts.*\(3, .*\(2, "),
        ("gpt_neox", _with(layers__0__attention__query_key_value__weight=(50, 16)), r"50 outputs .* do not split"),
    ],
)
def test_a_wrong_tensor_is_named(name, change, said):
    config, weights = model_of(name)
    shapes = shapes_of(weights)
    change(shapes)
    with pytest.raises(GraphError, match=said):
        build_graph(config, shapes)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("llama", {"num_hidden_layers": 3}, "says 3 layers, but 2 were found"),
        ("llama", {"num_attention_heads": None}, "has to say num_attention_heads"),
        ("llama", {"num_attention_heads": 5}, "a divisor of that; it says 5"),
        ("mixtral", {"num_local_experts": 4}, "says 4 experts, but the layer 'layers.0.' has 3"),
        ("albert", {"num_hidden_layers": None}, "has to say num_hidden_layers"),
        ("albert", {"num_hidden_groups": 3}, "says 3 groups of layers, 2 found"),
        (
            "llama",
            {"num_attention_heads": [4]},
            r"heads of 'layers.0.': .* says num_attention_heads=\[4\], and not a wh",
        ),
        ("llama", {"num_attention_heads": 0}, "not a whole number from 1"),
        ("llama", {"num_hidden_layers": "2"}, "says num_hidden_layers='2', and not a whole number"),
        ("mixtral", {"num_local_experts": True}, "says num_local_experts=True, and not a whole number"),
        ("albert", {"num_hidden_layers": 10**9}, "says num_hidden_layers=1000000000, and not a whole number"),
        ("albert", {"num_hidden_groups": {}}, "says num_hidden_groups={}, and not a whole number"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(name, changed, said):
    config, weights = model_of(name)
    with pytest.raises(GraphError, match=said):
        build_graph(config | changed, shapes_of(weights))


def test_an_expert_that_is_missing_on_disk_is_named():
    shapes = {f"layers.0.self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"}
    for expert in (0, 1, 2):
        at = f"layers.0.block_sparse_moe.experts.{expert}"
        shapes |= {f"{at}.w1.weight": (20, 16), f"{at}.w3.weight": (20, 16), f"{at}.w2.weight": (16, 20)}
    assert len(build_graph({"model_type": "mixtral", "num_local_experts": 3}, shapes).tensors) == 13
    with pytest.raises(GraphError, match="says 8 experts"):
        build_graph({"model_type": "mixtral", "num_local_experts": 8}, shapes)
    del shapes["layers.0.block_sparse_moe.experts.1.w3.weight"]
    with pytest.raises(GraphError, match=r"experts\.1\.w3\.weight' is missing"):
        build_graph({"model_type": "mixtral"}, shapes)


def test_a_decoder_whose_encoder_is_missing_is_refused_unless_it_stands_alone():
    config, weights = model_of("bart")
    decoder = {name: shape for name, shape in shapes_of(weights).items() if not name.startswith("encoder.")}
    with pytest.raises(GraphError, match="there is an encoder"):
        build_graph(config, decoder)
    graph = build_graph(config | {"is_encoder_decoder": False}, decoder)
    assert not any("encoder_attn" in name for name in graph.tensors)
    assert graph.inputs == ("decoder.embeddings",)
