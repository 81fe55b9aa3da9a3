"""Several ways to merge side by side."""

from __future__ import annotations

import inspect
import sys
from io import StringIO

import pytest
import torch
from alike import same_merge, same_record
from peft import LoraConfig, get_peft_model

import samerge
from samerge.errors import AdapterError, OptionError
from samerge.merging.comparison import _LINKS, _OPTIONS, parse_way

WAYS = ["saliency", "saliency:scaling=0.5", "tsv:scaling=0.7", "paper", "wudi:mu=0.1,scaling=0.5"]


@pytest.fixture(scope="module")
def found(zoo):
    beast = zoo("llama")
    return samerge.compare(beast.base, beast.adapters, WAYS, progress=False)


def test_each_way_is_the_merge_alone(zoo, found):
    beast = zoo("llama")
    alone = {
        "saliency": {"method": "saliency"},
        "saliency:scaling=0.5": {"method": "saliency", "scaling": 0.5},
        "tsv:scaling=0.7": {"method": "tsv", "scaling": 0.7},
        "paper": {"recipe": "paper"},
        "wudi:mu=0.1,scaling=0.5": {"method": "wudi", "scaling": 0.5, "method_options": {"mu": 0.1}},
    }
    assert found.names == tuple(WAYS)
    assert not found.failed
    for way, options in alone.items():
        merged = samerge.merge(beast.base, beast.adapters, progress=False, **options)
        same_merge(found.merged[way], merged)
        same_record(found.merged[way].report.diagnostics, merged.report.diagnostics)


def test_ways_that_select_alike_score_once(zoo, monkeypatch):
    import samerge.methods.chain as links

    calls = []
    real = links.select
    monkeypatch.setattr(links, "select", lambda *given: calls.append(given) or real(*given))
    beast = zoo("llama")
    ways = ["saliency", "saliency:scaling=0.5", "saliency:dtype=bfloat16", "saliency:rank=4", "saliency:weights=nan"]
    assert not samerge.compare(beast.base, beast.adapters, ways, progress=False).failed
    assert len(calls) == 3  # another rank and other weights are other selections


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
        "even": {"dora": "exact", "weights": [1.0, 2.0]},
        "wide": {"method": "tsv", "dora": "exact:5"},
    }
    found = samerge.compare(llama.base, adapters, ways, progress=False)
    assert not found.failed
    assert len(calls) == 2 * len(llama.model().model.layers)  # one module a layer, at two ranks
    for name, way in ways.items():
        alone = samerge.merge(llama.base, adapters, progress=False, **way)
        same_record(found.merged[name].report.record["layers"], alone.report.record["layers"])
        same_merge(found.merged[name], alone)


def test_factors_are_read_once(llama, monkeypatch):
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

            modules[name] = samerge.merging.comparison.replace(module, load=counted)
        adapters.append(samerge.merging.comparison.replace(adapter, modules=modules))
    samerge.compare(None, adapters, ["linear", "tsv", "ties"], progress=False)
    assert len(reads) == len(set(reads))


def test_rows_and_table(found):
    rows = {row["name"]: row for row in found.rows()}
    assert list(rows) == WAYS
    for way, row in rows.items():
        report = found.merged[way].report
        assert row["rank"] == report.record["output"]["rank"]
        assert row["expected_retention"] == report.expected_retention
        assert row["least_retention"] == min(row["experts"].values())
        assert row["experts"][row["least"]] == row["least_retention"]
        assert row["seconds"] > 0
        assert row["sign_conflict_before"] == report.diagnostics["sign_conflict"]
        assert (row["sign_conflict_after"] is None) == (way.split(":")[0] in ("tsv", "wudi"))
    from rich.console import Console

    console = Console(width=160, record=True, file=StringIO())
    console.print(found.table())
    text = console.export_text()
    assert all(way in text for way in WAYS)
    assert "{sign_conflict_before:.1%} to {sign_conflict_after:.1%}".format(**rows["saliency"]) in text


def test_a_way_that_fails_does_not_lose_the_others(llama):
    found = samerge.compare(None, llama.adapters, ["linear", "saliency", "ties:density=7"], progress=False)
    assert list(found.merged) == ["linear"]
    assert "give base=" in found.failed["saliency"]
    assert "density=7" in found.failed["ties:density=7"]
    rows = found.rows()
    assert [("failed" in row) for row in rows] == [False, True, True]
    found.table()


def test_ways_of_ones_own(llama):
    ways = {"half": {"method": "linear", "scaling": 0.5}, "other": {"method": "linear", "weights": [1.0, 0.5, 0.0]}}
    found = samerge.compare(None, llama.adapters, ways, options={"dtype": "bfloat16"}, progress=False)
    assert {f.A.dtype for f in found.merged["half"].factors.values()} == {torch.bfloat16}
    assert found.merged["other"].report.record["inputs"][1]["weight"] == 0.5


def test_picture(found, tmp_path):
    path = found.picture(tmp_path / "sub" / "ways.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["ways.png"]
    with pytest.raises(OptionError, match="ending"):
        found.picture(tmp_path / "ways.docx")


@pytest.mark.parametrize(
    ("ways", "told"),
    [
        (["linear", "tsv"], None),
        (["even", "iso-c", "linear:spectrum=flat"], None),  # all judged alike
        (["even", "iso-c", "linear"], "makes too little of even, iso-c (docs/diagnostics.md)"),
        (["linear", "wudi"], "makes too much of wudi (docs/diagnostics.md)"),
        (["even", "wudi"], "makes too little of even and too much of wudi (docs/diagnostics.md)"),
    ],
)
def test_ways_that_the_estimate_misjudges_are_named_beside_others(llama, tmp_path, ways, told):
    found = samerge.compare(None, llama.adapters, ways, progress=False)
    assert found.note == (None if told is None else f"What is left is an estimate that {told}.")
    assert found.table().caption == found.note
    drawn = found.picture(tmp_path / "ways.svg").read_text()
    assert ("docs/diagnostics.md" in drawn) == (told is not None)


def test_nothing_to_draw(llama, tmp_path):
    with pytest.raises(OptionError, match="no merge succeeded"):
        samerge.compare(None, llama.adapters, ["saliency"], progress=False).picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "is not known"),
        ("tsv:scaling", "OPTION=VALUE"),
        ("tsv:scaling=1,scaling=2", "OPTION=VALUE"),
        ("tsv:mu=1", "no option 'mu'"),
        ("wudi:nu=1", "wudi has"),
        ("saliency:rank=much", "whole number"),
        ("saliency:residual=perhaps", "true or false"),
    ],
)
def test_ways_that_cannot_be_read(text, said):
    with pytest.raises(OptionError, match=said):
        parse_way(text)


def test_refused(llama):
    for methods, said in (([], "empty"), (["ties", "ties"], "more than once"), ("ties", "single one")):
        with pytest.raises(OptionError, match=said):
            samerge.compare(None, llama.adapters, methods)
    with pytest.raises(OptionError, match="no option 'strength'"):
        samerge.compare(None, llama.adapters, {"mine": {"strength": 2}})
    with pytest.raises((AdapterError, samerge.HubError)):
        samerge.compare(None, ["./nowhere"], ["linear"])


def test_words_of_ways():
    assert parse_way("saliency:svd-rank=8,residual=false,density=adaptive") == {
        "method": "saliency",
        "svd_rank": 8,
        "residual": False,
        "density": "adaptive",
    }


def test_the_name_stays_a_function():
    assert callable(samerge.compare)
    assert callable(samerge.compare)
    assert samerge.Comparison.__name__ == "Comparison"


def test_a_way_may_have_every_option_of_merge() -> None:
    merge = set(inspect.signature(samerge.merge).parameters) - {"base", "adapters", "progress"}
    assert {*_LINKS, *_OPTIONS, "weights", "method_options"} == merge
    live = set(inspect.signature(samerge.add_weighted_adapter).parameters)
    assert merge - live == {"method"}  # which PEFT calls combination_type


def test_a_bar_says_which_way_it_is_of(llama, monkeypatch):
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    samerge.compare(llama.base, llama.adapters, ["linear", "tsv:scaling=0.7"])
    assert "1/2 linear" in terminal.getvalue()
    assert "2/2 tsv:scaling=0.7" in terminal.getvalue()
