"""The links of a merge from the command line and from a recipe file."""

from __future__ import annotations

import warnings

import pytest
from alike import same_files

import samerge
from samerge.report.report import read_report


def test_links_equal_the_api(invoke, tiny_base, loras, tmp_path) -> None:
    result = invoke(
        *("merge", "--base", tiny_base, "--adapter", loras / "math", "--adapter", loras / "code", "--out", "merged"),
        *("--balance", "norm", "--selection", "saliency", "--density", "0.6", "--aggregation", "ties"),
        *("--method-option", "density=0.4", "--rank", 3, "--spectrum", "flat", "--scaling", "auto:1.1"),
        *("--weights", "auto"),
    )
    assert result.exit_code == 0, result.output
    assert "saliency+ties: rank 3" in result.stdout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = samerge.merge(
            tiny_base,
            {"math": loras / "math", "code": loras / "code"},
            balance="norm",
            selection="saliency",
            density=0.6,
            aggregation="ties",
            method_options={"density": 0.4},
            rank=3,
            spectrum="flat",
            scaling="auto:1.1",
            weights="auto",
        )
    same_files(tmp_path / "merged", expected.save(tmp_path / "python"))
    assert read_report("merged").record["options"] == expected.report.record["options"]
    assert invoke("inspect", "merged").exit_code == 0


def test_links_in_a_recipe_file(invoke, tiny_base, loras, tmp_path) -> None:
    (tmp_path / "even.yaml").write_text(
        f"base: {tiny_base}\nadapters: [{loras / 'math'}, {loras / 'code'}]\nout: merged\nrecipe: even\n"
        "selection: random:5\nrank: 2\nbalance: global\nscaling: interference\nmethod_options: {density: 0.5}\n"
    )
    result = invoke("run", "even.yaml")
    assert result.exit_code == 0, result.output
    record = read_report("merged").record
    assert (record["method"], record["recipe"], record["output"]["rank"]) == ("random:5+tsv", "even", 2)
    chosen = ("selection", "aggregation", "balance", "spectrum", "scaling", "aggregation_density", "density")
    assert [record["options"][name] for name in chosen] == [
        *("random:5", "tsv", "global", "flat", "interference"),
        *(0.5, 0.75),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "saliency", "--selection", "norm"], "leave method or selection out"),
        (["--selection", "magic"], "selection='magic' is not known"),
        (["--aggregation", "magic"], "aggregation='magic' is not known"),
        (["--device", "gpu"], "device='gpu' cannot be computed on here"),
        (["--balance", "yes"], "balance='yes' is not known"),
        (["--spectrum", "white"], "spectrum='white' is not known"),
        (["--scaling", "auto:loud"], "must be 'auto:<c>'"),
        (["--weights", "best"], "weights='best' is not known"),
    ],
)
def test_bad_links(invoke, tiny_base, loras, words, message) -> None:
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out", *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
