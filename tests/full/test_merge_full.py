"""What merge_full gives, against dense tensors."""

import pytest
import torch
from alike import same_values
from herd import dense_elementwise

import samerge
from samerge.graph import build_graph
from samerge.weights import FolderSource

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def merge(herd, **options):
    return samerge.merge_full(herd.base, herd.experts, progress=False, **options)


def graph_of(herd, residual=True):
    source = FolderSource(herd.base)
    return build_graph(source.config, source.shapes, residual=residual)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit", "albert"])
def test_the_papers_recipe_is_the_dense_merge(herd_of, family):
    herd = herd_of(family)
    weights = {"math": 1.0, "code": 0.5, "talk": -0.7}
    merged = merge(herd, method="paper", weights=weights, iterations=3)
    graph = graph_of(herd, residual=False)
    base, experts = herd.weights()
    masks, updates = dense_elementwise(graph, base, experts, list(weights.values()), 0.1, 3)
    assert set(merged.shapes) == set(base)
    for name, theta in base.items():
        update = sum(w * (e[name] - theta) for w, e in zip(weights.values(), experts, strict=True))
        expected = theta + updates.get(name, update)
        torch.testing.assert_close(merged.tensor(name), expected, **EXACT, msg=name)
    for n in range(3):
        for name in graph.tensors:
            kept = merged.assembly.pruner.masks.rows(n, name, 0, base[name].shape[0], CPU)
            assert torch.equal(kept, masks[n][name])


@pytest.mark.parametrize("agreement", ["paper", "task"])
def test_the_report_tells_what_was_kept(llama, agreement):
    merged = merge(llama, density=0.2, iterations=2, agreement=agreement, weights=[1.0, 2.0, 1.0])
    base, experts = llama.weights()
    masks, updates = dense_elementwise(graph_of(llama), base, experts, [1.0, 2.0, 1.0], 0.2, 2, agreement == "task")
    record = merged.report.record
    for name in updates:
        layer = record.layers[name.removesuffix(".weight")]
        norms = []
        for n, item in enumerate(record.inputs):
            tau = experts[n][name] - base[name]
            share = layer.adapters[item.name]
            assert share.elements == (int(masks[n][name].sum()), tau.numel())
            assert share.norm == pytest.approx(float(tau.norm()))
            energy = float((tau * masks[n][name]).square().sum() / tau.square().sum())
            assert share.energy_kept == pytest.approx(energy)
            norms.append(float(tau.norm()))
        scale = 1.3 * (norms[0] + 2 * norms[1] + norms[2]) / 3 / float(updates[name].norm())
        assert layer.scale == pytest.approx(scale)
        assert layer.norm == pytest.approx(scale * float(updates[name].norm()))
        torch.testing.assert_close(merged.tensor(name), base[name] + scale * updates[name], **EXACT)
    assert set(record.log_connectivity) == set(llama.experts)
    assert all(len(item.sha256["model.safetensors"]) == 64 for item in record.inputs)
    assert record.mask_bytes > 0
    assert {"reading", "pruning", "measuring"} <= set(record.timings)
    assert [row.elements[0] for row in merged.report.adapters.values()] == [
        sum(int(mask.sum()) for mask in table.values()) for table in masks
    ]
    assert "kept" in [column.header for column in merged.report.table().columns]


def test_density_1_is_task_arithmetic(llama):
    merged = merge(llama, density=1.0, scaling=0.4, outside="sum", weights=[1.0, 0.5, 2.0])
    base, experts = llama.weights()
    for name, theta in base.items():
        update = sum(w * (e[name] - theta) for w, e in zip((1.0, 0.5, 2.0), experts, strict=True))
        torch.testing.assert_close(merged.tensor(name), theta + 0.4 * update, **EXACT)


@pytest.mark.parametrize("scaling", ["auto", 1.0])
@pytest.mark.parametrize("outside", ["average", "sum"])
def test_one_expert_at_density_1_is_that_expert(llama, scaling, outside):
    merged = samerge.merge_full(
        llama.base, {"math": llama.experts["math"]}, density=1, scaling=scaling, outside=outside, progress=False
    )
    _, experts = llama.weights()
    for name, expected in experts[0].items():
        torch.testing.assert_close(merged.tensor(name), expected, **EXACT)


def test_the_same_expert_twice_averages_to_itself_outside_the_graph(llama):
    folder = llama.experts["code"]
    merged = samerge.merge_full(llama.base, {"a": folder, "b": folder}, weights=[1.0, 3.0], progress=False)
    _, experts = llama.weights()
    torch.testing.assert_close(merged.tensor("model.norm.weight"), experts[1]["model.norm.weight"], **EXACT)


@pytest.mark.parametrize("outside", ["average", "sum", "base"])
def test_tensors_outside_the_graph(llama, outside):
    weights = [1.0, -0.5, 2.0]
    merged = merge(llama, density=0.5, iterations=1, outside=outside, weights=weights, scaling=0.8)
    base, experts = llama.weights()
    beside = sorted(set(base) - set(graph_of(llama).tensors))
    assert "model.embed_tokens.weight" in beside
    for name in beside:
        update = sum(w * (e[name] - base[name]) for w, e in zip(weights, experts, strict=True))
        factor = {"average": 1 / 3.5, "sum": 0.8, "base": 0.0}[outside]
        torch.testing.assert_close(merged.tensor(name), base[name] + factor * update, **EXACT)
    record = merged.report.record
    assert record.outside == {"rule": outside, "tensors": beside}
    made = {name: merged.tensor(name) - base[name] for name in base}

    def norm(tensors):
        return float(torch.cat([tensor.reshape(-1) for tensor in tensors]).norm())

    assert record.whole.norm == pytest.approx(norm(made.values()), rel=1e-5)
    for one, expert in zip(record.inputs, experts, strict=True):
        own = {name: expert[name] - base[name] for name in base}
        told = record.adapters[one.name]
        assert told.norm == pytest.approx(norm(own.values()))
        inner = sum(float((own[name] * made[name]).sum()) for name in base)
        assert told.cosine == pytest.approx(inner / told.norm / record.whole.norm, abs=1e-6)
    told = record.layers["model.embed_tokens"]
    assert told.outside
    assert told.norm == pytest.approx(float(made["model.embed_tokens.weight"].norm()), abs=1e-6)


def test_an_expert_of_weight_0_is_left_out(llama):
    merged = merge(llama, weights=[1.0, 0.0, 1.0], iterations=2)
    without = {name: llama.experts[name] for name in ("math", "talk")}
    expected = samerge.merge_full(llama.base, without, iterations=2, progress=False)
    for name in merged.shapes:
        same_values(merged.tensor(name), expected.tensor(name), 1e-12)
    assert "weight 0 leaves these experts out: code" in merged.report.warnings


def test_a_list_of_experts_and_models_that_are_loaded(llama, herd_of):
    listed = samerge.merge_full(llama.base, list(llama.experts.values()), iterations=1, progress=False)
    assert [item.name for item in listed.report.record.inputs] == ["math", "code", "talk"]
    model = llama.model(llama.base)
    live = {name: llama.model(folder) for name, folder in llama.experts.items()}
    before = {name: p.clone() for name, p in model.named_parameters()}
    merged = samerge.merge_full(model, live, iterations=1, progress=False)
    for name in listed.shapes:
        same_values(merged.tensor(name), listed.tensor(name), 1e-12)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_local_connectivity(llama):
    merged = merge(llama, connectivity="local", iterations=2, scaling=1.0)
    base, experts = llama.weights()
    name = "model.layers.0.mlp.up_proj.weight"
    from samerge.graph import Weight
    from samerge.graph.widths import local_graph

    graph = local_graph([Weight("", "", tensor) for tensor in graph_of(llama).tensors])
    _, updates = dense_elementwise(graph, base, experts, [1.0] * 3, 0.1, 2)
    torch.testing.assert_close(merged.tensor(name), base[name] + updates[name], **EXACT)


def test_files_hold_the_masks_if_asked(llama, tmp_path):
    merged = merge(llama, iterations=2, work_dir=tmp_path / "work")
    expected = merge(llama, iterations=2)
    files = list((tmp_path / "work").rglob("*.bits"))
    assert sum(file.stat().st_size for file in files) == merged.report.record.mask_bytes
    for name in merged.shapes:
        same_values(merged.tensor(name), expected.tensor(name), 1e-12)
    merged.close()
    assert not list((tmp_path / "work").iterdir())


def test_half_precision_is_computed_in_float32(herd_of):
    herd = herd_of("llama", torch.bfloat16)
    merged = merge(herd, density=0.3, iterations=2, scaling=1.0)
    base, experts = herd.weights()
    _, updates = dense_elementwise(graph_of(herd), base, experts, [1.0] * 3, 0.3, 2)
    name = "model.layers.1.mlp.down_proj.weight"
    assert merged.tensor(name).dtype == torch.bfloat16
    expected = (base[name].double() + updates[name]).bfloat16()
    assert (merged.tensor(name) == expected).float().mean() > 0.99


def test_stacked_experts_of_a_mixture(tmp_path):
    """Masks of every matrix in a stack; the schedule holds in each of them."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    base, expert = MixtralForCausalLM(config).double(), MixtralForCausalLM(config).double()
    merged = samerge.merge_full(
        base, {"a": expert}, density=0.5, iterations=2, scaling=1.0, outside="sum", progress=False
    )
    start, end = dict(base.named_parameters()), dict(expert.named_parameters())
    stacks = [name for name, shape in merged.shapes.items() if len(shape) == 3]
    assert stacks
    for name in stacks:
        tau, found = end[name] - start[name], merged.tensor(name) - start[name]
        kept = found != 0
        torch.testing.assert_close(found[kept], tau[kept], rtol=1e-9, atol=1e-12)
        for number in range(3):
            assert kept[number].sum() == round(tau[number].numel() * 0.5)
