"""A merge that cannot fit is refused before anything is read."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter, write_base

import samerge
from samerge.methods import memory, rows
from samerge.methods.memory import layer_bytes
from samerge.methods.registry import available_methods, find
from samerge.parallel import memory as machine

SPECTRAL = (
    "even",
    "svd",
    "tsv",
    "iso-c",
    "iso-cts",
    "dc-merge",
    "star",
    "wudi",
    "aswudi",
    "knots-ties",
    "core-ties",
    "ctm",
)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    base = chain([24, 30, 26])
    return {f"e{n}": write_adapter(folder / f"e{n}", chain_factors(base, 2 + n, seed=n)) for n in range(3)}


@pytest.mark.parametrize("method", SPECTRAL)
def test_too_little_memory(adapters, method, monkeypatch):
    need = layer_bytes((26, 30), 9)
    monkeypatch.setattr(memory, "free_bytes", lambda device: need - 1)
    with pytest.raises(
        samerge.AdapterError, match=r"merging 3 adapters: their 9 components in layer layers\.\d .*need"
    ):
        samerge.merge(None, adapters, method=method)
    held = {"knots-ties": 3, "core-ties": 3, "ctm": 3}.get(method, 0)
    all_layers = 4 * held * 9 * (24 + 30 + 30 + 26)
    for free in (need + all_layers, None):  # None: nobody tells
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert samerge.merge(None, adapters, method=method).factors


@pytest.mark.parametrize("method", sorted(available_methods()))
def test_every_method_refuses_what_cannot_fit(adapters, method, tmp_path, monkeypatch):
    base = chain([24, 30, 26])
    write_base(tmp_path, base)
    options = {} if find(method).base == "unused" else {"connectivity": "local"}
    assert samerge.merge(tmp_path, adapters, method=method, **options).factors
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    with pytest.raises(samerge.AdapterError, match=r"merging 3 adapters: their 9 components in layer .* need about"):
        samerge.merge(tmp_path, adapters, method=method, **options)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare"])
def test_too_little_memory_for_tiles(adapters, method, monkeypatch):
    need = 4 * 10 * rows.TOGETHER_ELEMENTS
    monkeypatch.setattr(memory, "free_bytes", lambda device: need)
    with pytest.raises(samerge.AdapterError, match=r"merging 3 adapters: .*with what is held of all layers"):
        samerge.merge(None, adapters, method=method)


def test_too_little_memory_for_masks(adapters, tmp_path, monkeypatch):
    base = chain([24, 30, 26])
    write_base(tmp_path, base)
    options = {"method": "elementwise", "connectivity": "local", "iterations": 1}
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 11)
    with pytest.raises(samerge.AdapterError, match=r"merging 3 adapters: .*with what is held of all layers"):
        samerge.merge(tmp_path, adapters, **options)


def test_weight_0_needs_nothing(adapters, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: layer_bytes((26, 30), 9) - 1)
    assert samerge.merge(None, adapters, method="tsv", weights=[1.0, 1.0, 0.0]).factors


def test_what_the_system_says(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:   50 kB\n")
    assert machine._of_the_system(file) == 50 << 10
    assert machine._of_the_system(tmp_path / "absent") is None
    assert machine._of_the_group(tmp_path) is None
    for name, told in (
        ("memory.max", "max\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 1\ninactive_file 50\n"),
    ):
        (tmp_path / name).write_text(told)
    assert machine._of_the_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine._of_the_group(tmp_path) == 350
    (tmp_path / "memory.max").write_text("100\n")
    assert machine._of_the_group(tmp_path) == 0
    assert machine.free_bytes(torch.device("meta")) is None
    found = machine.free_bytes(torch.device("cpu"))
    assert found is None or found > 0
