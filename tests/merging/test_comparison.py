"""Several ways to merge side by side."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from io import StringIO

import pytest
import torch
from alike import same_merge
from peft import LoraConfig, get_peft_model
from rich.console import Console

import samerge
from samerge.errors import AdapterError, OptionError
from samerge.merging.comparison import parse_way
from samerge.report.facts import number

WAYS = ["saliency", "saliency:scaling=0.5", "tsv:scaling=0.7", "paper", "wudi:mu=0.1,scaling=0.5"]


@pytest.fixture(scope="module")
def found(zoo):
    beast = zoo("llama")
    return samerge.compare(beast.base, beast.adapters, WAYS, progress=False)


def shown(found: samerge.Comparison, width: int) -> str:
    console = Console(width=width, file=StringIO())
    console.print(found.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_way_is_the_merge_alone(zoo, found):
    beast = zoo("llama")
    alone = {
        "saliency": {},
        "saliency:scaling=0.5": {"method": "saliency", "scaling": 0.5},
        "tsv:scaling=0.7": {"method": "tsv", "scaling": 0.7},
        "paper": {"method": "paper"},
        "wudi:mu=0.1,scaling=0.5": {"method": "wudi", "scaling": 0.5, "mu": 0.1},
    }
    assert found.names == tuple(WAYS)
    assert not found.failed
    for way, options in alone.items():
        merged = samerge.merge(beast.base, beast.adapters, progress=False, **options)
        same_merge(found.merged[way], merged)
        assert merged.report.record.options == found.merged[way].report.record.options


def test_dora_adapters_are_converted_once(llama, tmp_path, monkeypatch):
    """For all ways of one rank of the conversion; each way is the merge alone."""
    import samerge.merging.conversion.dora as dora

    for name in ("a", "b"):
        config = LoraConfig(r=3, target_modules=["q_proj"], use_dora=name == "b", init_lora_weights=False)
        get_peft_model(llama.model(), config).save_pretrained(tmp_path / name)
    adapters = {name: tmp_path / name for name in ("a", "b")}
    calls, real = [], dora.truncated_svd
    monkeypatch.setattr(dora, "truncated_svd", lambda *given, **named: calls.append(given) or real(*given, **named))
    ways = {
        "tsv": {"method": "tsv", "dora": "exact"},
        "even": {"method": "even", "dora": "exact", "weights": [1.0, 2.0]},
        "wide": {"method": "tsv", "dora": "exact:5"},
    }
    found = samerge.compare(llama.base, adapters, ways, progress=False)
    assert not found.failed
    assert len(calls) == 2 * len(llama.model().model.layers)  # one module a layer, at two ranks
    for name, way in ways.items():
        alone = samerge.merge(llama.base, adapters, progress=False, **way)
        same_merge(found.merged[name], alone)


def test_factors_are_read_once(llama):
    from samerge.merging.inputs import open_adapters

    reads = []
    adapters = []
    for adapter in open_adapters(None, llama.adapters):
        modules = {}
        for name, module in adapter.modules.items():
            load = module.load

            def counted(load=load, key=(adapter.name, name)):
                reads.append(key)
                return load()

            modules[name] = replace(module, load=counted)
        adapters.append(replace(adapter, modules=modules))
    samerge.compare(None, adapters, ["linear", "tsv", "ties"], progress=False)
    assert len(reads) == len(set(reads)) > 0


def test_figures_are_those_of_the_dense_updates(zoo, found):
    beast = zoo("llama")
    alone = {name: samerge.merge(None, {name: path}, method="linear") for name, path in beast.adapters.items()}
    for row in found.rows():
        merged = found.merged[row["name"]]
        dense = {module: merged.delta(module).double() for module in merged.factors}
        size = math.sqrt(sum(float(update.square().sum()) for update in dense.values()))
        cosines = {}
        for name, own in alone.items():
            inner = sum(float((dense[module] * own.delta(module)).sum()) for module in own.factors)
            norm = math.sqrt(sum(float(own.delta(module).double().square().sum()) for module in own.factors))
            cosines[name] = inner / (norm * size)
        assert row["norm"] == pytest.approx(size, rel=1e-4)
        assert row["cosines"] == pytest.approx(cosines, abs=1e-4)
        assert row["cosine"] == pytest.approx(sum(cosines.values()) / len(cosines), abs=1e-4)
        assert row["least_cosine"] == pytest.approx(min(cosines.values()), abs=1e-4)
        assert row["cosines"][row["least"]] == row["least_cosine"]
        assert row["rank"] == merged.report.record.output.rank
        assert row["seconds"] > 0


@pytest.mark.parametrize("width", [160, 80, 50, 20])
def test_the_table_is_whole_at_any_width(found, width):
    text = shown(found, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    squeezed = "".join(text.split())
    assert "…" not in text
    for word in ("rank", "norm", "cosine", "interference", "energy", "lost", "seconds"):
        assert word in text
    for row in found.rows():
        assert f"{row['cosine']:.2f}" in squeezed
    if width == 160:
        assert all(way in text for way in WAYS)


def test_long_names_are_folded_and_not_cut(llama):
    ways = {f"a-very-long-name-of-a-way-to-merge-{n}": {"method": "linear", "scaling": n} for n in (1, 2)}
    found = samerge.compare(None, llama.adapters, ways, progress=False)
    text = "".join(shown(found, 80).split())
    assert "\u2026" not in text
    whole = "".join(shown(found, 300).split())
    assert all(way in whole for way in ways)


def test_a_way_that_fails_does_not_lose_the_others(llama):
    found = samerge.compare(None, llama.adapters, ["linear", "saliency"], progress=False)
    assert list(found.merged) == ["linear"]
    assert "give base" in found.failed["saliency"]
    assert [("failed" in row) for row in found.rows()] == [False, True]
    assert "failed" in shown(found, 100)


def test_ways_of_ones_own(llama):
    ways = {"half": {"method": "linear", "scaling": 0.5}, "other": {"method": "linear", "weights": [1.0, 0.5, 0.0]}}
    found = samerge.compare(None, llama.adapters, ways, options={"dtype": "bfloat16"}, progress=False)
    assert {f.A.dtype for f in found.merged["half"].factors.values()} == {torch.bfloat16}
    assert found.merged["other"].report.record.inputs[1].weight == 0.5


def test_picture(found, tmp_path):
    path = found.picture(tmp_path / "sub" / "ways.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["ways.png"]
    with pytest.raises(OptionError, match="ending"):
        found.picture(tmp_path / "ways.docx")


def test_nothing_to_draw(llama, tmp_path):
    with pytest.raises(OptionError, match="no merge succeeded"):
        samerge.compare(None, llama.adapters, ["saliency"], progress=False).picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("nothing", "is not known"),
        ("tsv:scaling", "OPTION=VALUE"),
        ("tsv:scaling=1,scaling=2", "OPTION=VALUE"),
        ("tsv:mu=1", "no option 'mu'"),
        ("doge:step=1", "did you mean 'steps'"),
        ("saliency:rank=much", "whole number"),
        ("saliency:residual=perhaps", "true or false"),
        ("ties:density=7", r"\(0, 1\]"),
    ],
)
def test_ways_that_cannot_be_are_refused_before_any_is_merged(way, said):
    with pytest.raises(OptionError, match=said):
        samerge.compare(None, ["./nowhere"], ["linear", way])


def test_refused(llama):
    for methods, said in (([], "empty"), (["ties", "ties"], "more than once"), ("ties", "single one")):
        with pytest.raises(OptionError, match=said):
            samerge.compare(None, llama.adapters, methods)
    with pytest.raises(OptionError, match=r"the way 'mine': .* no option 'strength'"):
        samerge.compare(None, llama.adapters, {"mine": {"strength": 2}})
    with pytest.raises((AdapterError, samerge.HubError)):
        samerge.compare(None, ["./nowhere"], ["linear"])


def test_words_of_ways():
    assert parse_way("saliency:svd-rank=8,residual=false") == {
        "method": "saliency",
        "svd_rank": "8",
        "residual": "false",
    }


def test_a_bar_says_which_way_it_is_of(llama, monkeypatch):
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    samerge.compare(llama.base, llama.adapters, ["linear", "tsv:scaling=0.7"])
    assert "1/2 linear" in terminal.getvalue()
    assert "2/2 tsv:scaling=0.7" in terminal.getvalue()


def test_a_notebook_shows_the_table_and_the_cosines(found):
    text = found._repr_html_()
    for row in found.rows():
        if "failed" not in row:
            for cosine in row["cosines"].values():
                assert f">{number(cosine)}</td>" in text
    assert "Who goes whose way" in text
    assert "A row is a way to merge, a column an adapter." in text
