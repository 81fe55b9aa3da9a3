"""What a report warns of, on merges that are made for it."""

from __future__ import annotations

import re

import pytest
from tiny import chain, chain_factors, write_adapter

import samerge
from samerge.merging.findings import LOUD
from samerge.methods.registry import find


def folders(tmp_path, sizes):
    base = chain([24, 26, 22])
    tables = [
        {m: (A, B * size) for m, (A, B) in chain_factors(base, 4, seed).items()} for seed, size in enumerate(sizes, 1)
    ]
    return [write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)]


def loud(merged: samerge.MergedAdapter) -> list[str]:
    return [text for text in merged.report.warnings if "all adapters' updates there together" in text]


def test_a_method_that_explodes_is_told_of(tmp_path):
    """ACE-Merging where norms differ by orders of magnitude: the largest layer of the files, by hand."""
    given = folders(tmp_path, (1.0, 1e-4, 1e-4))
    merged = samerge.merge(None, given, method="ace", progress=False)
    layers = merged.report.record.layers
    times = {m: float(merged.delta(m).norm()) / sum(a.norm for a in one.adapters.values()) for m, one in layers.items()}
    worst = max(times, key=lambda m: times[m])
    assert times[worst] > LOUD, "not the case that this is about"
    [told] = loud(merged)
    found = re.search(r"most in (\S+): (\S+) times", told)
    assert found is not None
    assert found[1] == worst
    assert float(found[2]) == pytest.approx(times[worst], rel=0.01)


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1.0, 2.0, 0.5), (3.0, 1e-3)])
@pytest.mark.parametrize("options", [{}, {"rank": 40}, {"weights": [1.0, -0.1, 0.3]}], ids=str)
def test_the_default_is_not_told_of(tmp_path, sizes, options):
    given = {key: value[: len(sizes)] if key == "weights" else value for key, value in options.items()}
    for method in ("even", "linear", "tsv"):
        assert not loud(samerge.merge(None, folders(tmp_path, sizes), method=method, progress=False, **given))


@pytest.mark.parametrize("options", [{}, {"density": 0.01}, {"rank": 40}], ids=str)
@pytest.mark.parametrize("method", ["dare", "dare-ties"])
def test_a_method_that_makes_up_for_what_it_drops_is_not_told_of(tmp_path, method, options):
    merged = samerge.merge(None, folders(tmp_path, (1.0, 1.0)), method=method, progress=False, **options)
    layers = merged.report.record.layers.values()
    assert max(one.norm / sum(each.norm for each in one.adapters.values()) for one in layers) > 1
    assert not loud(merged)


def untrained(merged: samerge.MergedAdapter) -> list[str]:
    return [text for text in merged.report.warnings if "its update is zero in every layer" in text]


@pytest.mark.parametrize("method", [name for name in samerge.available_methods() if find(name).base != "needed"])
def test_an_adapter_that_was_never_trained_is_named(tmp_path, method):
    """All methods that need no base; the others take the same way out."""
    merged = samerge.merge(None, folders(tmp_path, (1.0, 0.0, 1.0)), method=method, progress=False)
    assert untrained(merged) == ["the adapter e1 adds nothing: its update is zero in every layer; was it trained?"]


def test_who_is_not_named_as_untrained(tmp_path):
    """One that is left out, one that is zero in one layer alone, and all of them, whose merge says more."""
    given = folders(tmp_path, (1.0, 0.0))
    assert not untrained(samerge.merge(None, given, weights=[1, 0], method="linear", progress=False))
    base = chain([24, 26, 22])
    half = {m: (A, B * (m == "layers.0")) for m, (A, B) in chain_factors(base, 4, 3).items()}
    partly = write_adapter(tmp_path / "partly", half)
    assert not untrained(samerge.merge(None, [given[0], partly], method="linear", progress=False))
    with pytest.warns(UserWarning, match="every update that went in is zero"):
        assert not untrained(samerge.merge(None, [given[1]], method="linear", progress=False))
