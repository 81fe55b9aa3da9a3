"""Every row of the table against the models themselves: names, shapes, and the wiring of the real network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from graph_flow import score, streams_of
from graph_zoo import ZOO, inputs_of, saved
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from samerge.graph import FlowGraph, Weight, build_graph, families

WIDTH = 16  # of the hidden stream, in the whole zoo


def shapes_of(weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def linears_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every linear map of a model: name of the weight -> the module that has it. Routers are such maps too."""
    found = {}
    for name, module in model.named_modules():
        for parameter, weight in module.named_parameters(recurse=False):
            linear = isinstance(module, torch.nn.Linear | Conv1D) and parameter == "weight"
            stack = parameter.endswith("_proj") and weight.dim() == 3
            router = name.endswith(("router", "mlp.gate")) and parameter == "weight"
            if linear or stack or router:
                found[f"{name}.{parameter}"] = module
    return found


def test_every_row_has_a_model_in_the_zoo_and_every_model_a_row():
    assert set(families()) == {animal.model_type for animal in ZOO}
    assert list(families()) == sorted(set(families()))


def _is_outside(name: str, told: str) -> bool:
    return name.startswith(told) if told.endswith(".") else name == told


@pytest.mark.parametrize("residual", [True, False])
def test_the_graph_has_every_linear_map_but_those_outside(animal, model, in_memory, residual):
    graph = build_graph(model.config.to_dict(), shapes_of(in_memory), residual)
    linears = set(linears_of(model))
    outside = {name for name in linears for told in animal.outside if _is_outside(name, told)}
    assert all(any(name.startswith(told) for name in outside) for told in animal.outside)
    assert set(graph.tensors) == linears - outside


@pytest.mark.parametrize("residual", [True, False])
def test_saved_names_give_the_same_flow_as_those_in_memory(model, in_memory, on_disk, residual):
    config = model.config.to_dict()
    memory = score(build_graph(config, shapes_of(in_memory), residual), in_memory, WIDTH)
    disk = score(build_graph(config, shapes_of(on_disk), residual), on_disk, WIDTH)
    assert memory > 0
    np.testing.assert_allclose(disk, memory, rtol=1e-5)


def test_gathers_take_each_output_of_a_fused_projection(model, in_memory):
    """No output is left unread, and none is read beyond the end."""
    graph = build_graph(model.config.to_dict(), shapes_of(in_memory))
    alpha = streams_of(graph, in_memory, WIDTH)
    read: dict[str, list[np.ndarray]] = {}
    for edge in graph.edges:
        if not isinstance(edge, Weight) and edge.index is not None:
            read.setdefault(edge.source, []).append(edge.index)
    for stream, indices in read.items():
        assert set(np.concatenate(indices)) == set(range(len(alpha[stream]))), stream


def test_without_residuals_every_edge_multiplies_or_gathers(model, in_memory):
    config, shapes = model.config.to_dict(), shapes_of(in_memory)
    with_residuals, bare = build_graph(config, shapes), build_graph(config, shapes, residual=False)
    assert all(isinstance(edge, Weight) or edge.index is not None for edge in bare.edges)
    identities = [edge for edge in with_residuals.edges if not isinstance(edge, Weight) and edge.index is None]
    assert len(with_residuals.edges) == len(bare.edges) + len(identities)
    # One around each sub-layer: an output stream of one is where a residual ends.
    assert len({edge.target for edge in identities}) == len(identities) >= 2


def _reach(graph: FlowGraph) -> dict[str, set[str]]:
    """For each weight, the weights whose input it has a path to."""
    readers: dict[str, set[str]] = {name: set() for name in graph.streams}
    for name in reversed(graph.streams):
        for edge in graph.edges:
            if edge.source == name:
                readers[name] |= readers[edge.target]
                if isinstance(edge, Weight):
                    readers[name].add(edge.tensor)
    table: dict[str, set[str]] = {}
    for edge in graph.edges:
        if isinstance(edge, Weight):
            table.setdefault(edge.tensor, set()).update(readers[edge.target])
    return table


def test_a_weight_reaches_in_the_graph_what_it_reaches_in_the_network(model, in_memory):
    """Change one weight of the real model, run it, and see which linear maps read something new."""
    graph = build_graph(model.config.to_dict(), shapes_of(in_memory))
    modules = {name: module for name, module in linears_of(model).items() if name in graph.tensors}
    # The inside of a stack of experts cannot be watched: what goes into its module is what its first weight reads.
    inner = {name for name in modules if name.endswith("experts.down_proj")}
    batch = inputs_of(model)

    def what_they_read() -> dict[str, list[torch.Tensor]]:
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        hooks = [
            module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach().clone()))
            for name, module in modules.items()
        ]
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
        return seen

    before = what_they_read()
    parameters = dict(model.named_parameters())
    expected = _reach(graph)
    for changed in modules:
        old = parameters[changed].detach().clone()
        with torch.no_grad():
            parameters[changed].mul_(-1.5)
        after = what_they_read()
        with torch.no_grad():
            parameters[changed].copy_(old)
        reached = {
            name
            for name in set(modules) - inner
            if any(not torch.equal(one, two) for one, two in zip(before[name], after[name], strict=True))
        }
        assert reached == expected[changed] - inner, changed


_TASKS = ("CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING")
_TASKS += ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_CLASSIFICATION", "IMAGE_TEXT_TO_TEXT")


def test_models_with_a_head_give_the_graph_of_the_bare_one(animal, model, in_memory):
    bare = build_graph(model.config.to_dict(), shapes_of(in_memory)).tensors
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in _TASKS]
    heads = [mapping[animal.model_type] for mapping in mappings if animal.model_type in mapping]
    for name in sorted({name for head in heads for name in ([head] if isinstance(head, str) else head)}):
        head = getattr(transformers, name)(animal.make_config())
        config = head.config.to_dict()
        names = shapes_of(dict(head.named_parameters()))
        graph = build_graph(config, names)
        prefixes = ("", f"{head.base_model_prefix}.")
        expected = {prefix + tensor for prefix in prefixes for tensor in bare if prefix + tensor in names}
        if not any(".encoder." in f".{tensor}" for tensor in expected):  # a decoder alone
            expected = {tensor for tensor in expected if "encoder_attn" not in tensor}
        assert set(graph.tensors) == expected != set(), name
        # The names on disk may differ, but not what they say.
        weights = {key: value.detach().double().numpy() for key, value in head.named_parameters()}
        disk = saved(head)
        np.testing.assert_allclose(
            score(build_graph(config, shapes_of(disk)), disk, WIDTH), score(graph, weights, WIDTH), rtol=1e-5
        )
