from __future__ import annotations

import json

import pytest


def test_compare(invoke, tiny_base, loras, tmp_path) -> None:
    words = (
        "compare",
        "-b",
        tiny_base,
        "-a",
        loras / "math",
        "-a",
        loras / "code",
        "-m",
        "linear",
        "-m",
        "tsv:scaling=0.7",
    )
    result = invoke(*words, "--picture", "ways.svg", "--save", "linear", "--output", "kept")
    assert result.exit_code == 0, result.stderr
    for word in ("linear", "tsv:scaling=0.7", "interference", "seconds"):
        assert word in result.stdout
    assert (tmp_path / "kept" / "samerge.json").is_file()
    assert (tmp_path / "ways.svg").read_text().startswith("<?xml")


def test_the_help_shows_the_example_as_it_is_typed(invoke) -> None:
    assert "--adapter math=ada/math-lora --adapter code=./code-lora \\" in invoke("compare", "--help").stdout


def test_compare_json_and_save_all(invoke, loras, tmp_path) -> None:
    words = ("compare", f"{loras / 'math'}:0.5", loras / "code", "-m", "linear", "-m", "tsv:scaling=0.7", "--json")
    told = json.loads(invoke(*words, "--save-all", "--out", "all").stdout)
    assert [way["name"] for way in told["ways"]] == ["linear", "tsv:scaling=0.7"]
    assert set(told["ways"][0]["cosines"]) == {"math", "code"}
    assert sorted(folder.name for folder in (tmp_path / "all").iterdir()) == ["linear", "tsv_scaling=0.7"]
    record = json.loads((tmp_path / "all" / "linear" / "samerge.json").read_text())
    assert [item["weight"] for item in record["inputs"]] == [0.5, 1.0]


def test_a_way_that_fails_is_told_at_the_end(invoke, loras, tmp_path) -> None:
    words = ("compare", loras / "math", loras / "code", "-m", "linear", "-m", "saliency")
    result = invoke(*words, "--save-all", "--output", "all")
    assert result.exit_code == 2
    assert "failed: saliency" in result.stderr
    assert "linear" in result.stdout
    assert [folder.name for folder in (tmp_path / "all").iterdir()] == ["linear"]


def test_a_warning_says_which_ways_it_is_of(invoke, loras) -> None:
    words = ("compare", loras / "math", loras / "code", "-m", "linear", "-m", "dare:rank=1", "--json")
    (told,) = json.loads(invoke(*words).stdout)["warnings"]
    assert told.startswith("dare:rank=1: truncation to the rank lost over 20% of the energy")
    words = ("compare", f"{loras / 'math'}:0", loras / "code", "-m", "linear", "-m", "tsv", "--json")
    (told,) = json.loads(invoke(*words).stdout)["warnings"]
    assert told == "weight 0 leaves these adapters out: math"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--save", "ties", "--output", "x"), "none of the ways"),
        (("--save", "linear"), "need --out"),
        (("--output", "x"), "needs --save"),
        (("--picture", "x.docx"), "ending"),
    ],
)
def test_refused_before_any_work(invoke, loras, more, said, tmp_path) -> None:
    result = invoke("compare", loras / "math", loras / "code", "-m", "linear", *more)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_inspect_of_several_adapters(invoke, loras, tmp_path) -> None:
    result = invoke("inspect", loras / "math", f"other={loras / 'code'}", "--picture", "c.png")
    assert result.exit_code == 0, result.stderr
    for words in ("Cosine between", "Each with each", "math, other", "Layers most in conflict", "No two of these"):
        assert words in result.stdout
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(invoke("inspect", loras / "math", loras / "code", loras / "far", "--json", "--worst", 2).stdout)
    assert told["adapters"] == ["math", "code", "far"]
    assert told["cosine"][0][0] == pytest.approx(1)
    assert len(told["worst_layers"]) == 2


def test_inspect_refuses(invoke, loras) -> None:
    assert "no weights" in invoke("inspect", f"{loras / 'math'}:0.5", loras / "code").stderr
