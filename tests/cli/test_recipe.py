from __future__ import annotations

import json

import pytest

from samerge import OptionError
from samerge.cli.named_adapter import AdapterSpec
from samerge.cli.recipe import parse_recipe
from samerge.cli.target import AdapterTarget
from samerge.merging.plan import plan
from samerge.report.report import read_report

RECIPE = """
base: meta-llama/Llama-3.1-8B
adapters:
  - name: math
    source: ada/math-lora
  - model: ./code-lora
    weight: 0.8
  - ada/prose
method: paper
svd-rank: 8.0
scaling: auto
density: 1e-1
residual: false
out: merged/
"""


@pytest.mark.parametrize(
    "adapters",
    [
        "[{name: no, source: ./norwegian}]",
        "{no: ./norwegian}",
        "[{name: '', source: ./a}]",
        "[{name: [a], source: ./a}]",
    ],
)
def test_a_name_that_yaml_takes_for_something_else_is_refused(adapters) -> None:
    with pytest.raises(OptionError, match=r"adapter 1: its name is .*in quotes"):
        parse_recipe(f"adapters: {adapters}", "r.yaml")


def test_names_in_quotes_of_digits_and_left_empty() -> None:
    request = parse_recipe("adapters: [{name: 'no', source: a/b}, {name: 1, source: a/c}, {name: , source: a/d}]", "r")
    assert [one.name for one in request.adapters] == ["no", "1", "d"]


def test_parse() -> None:
    request = parse_recipe(RECIPE, "r.yaml")
    assert request.base == "meta-llama/Llama-3.1-8B"
    assert request.adapters == (
        AdapterSpec("math", "ada/math-lora"),
        AdapterSpec("code-lora", "./code-lora", 0.8),
        AdapterSpec("prose", "ada/prose"),
    )
    assert request.weights == {"math": 1.0, "code-lora": 0.8, "prose": 1.0}
    planned = plan(request.method, request.options).record()
    expected = {"rank": 8, "scaling": "auto", "density": 0.1, "residual": False}
    assert {name: planned[name] for name in expected} == expected
    assert request.target == AdapterTarget(out="merged/")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rank: 16.0", "rank", 16),
        ("rank: '16'", "rank", 16),
        ("svd_rank: none\nrank: 4", "rank", 4),
        ("rank: none", "rank", None),
        ("rank: null", "rank", None),
        ("scaling: 1e-1", "scaling", 0.1),
        ("balance: none", "balance", "none"),
        ("method: paper\nresidual: no", "residual", False),
    ],
)
def test_values_mean_what_they_mean_elsewhere(text: str, name: str, value: object) -> None:
    request = parse_recipe(f"adapters: [a]\nout: o\n{text}", "r.yaml")
    assert plan(request.method, request.options).record()[name] == value


def test_where_it_goes() -> None:
    text = "adapters: [a]\npush_to_hub: a/b\ncreate-pr: yes\ncommit_message: mine\nweights: [0.5]"
    request = parse_recipe(text, "r.yaml")
    assert request.target == AdapterTarget(push_to_hub="a/b", create_pr=True, commit_message="mine")
    assert request.weights == [0.5]


def test_adapters_as_a_mapping() -> None:
    request = parse_recipe("adapters: {a: x/a, b: {source: y/b, weight: -2}}\nout: o", "r.yaml")
    assert request.adapters == (AdapterSpec("a", "x/a"), AdapterSpec("b", "y/b", -2.0))


def test_changes_win() -> None:
    assert parse_recipe(RECIPE, "r.yaml", {"out": "elsewhere", "overwrite": True}).target == AdapterTarget(
        out="elsewhere", overwrite=True
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no mapping"),
        ("- a", "it holds no mapping"),
        ("a: [", "it is not valid YAML: "),
        ("adapters: [a]\nout: o\ndensty: 0.1", r"the key 'densty' is not known; did you mean 'density'\?"),
        ("adapters: [a]\nout: o\nout: p", "line 3: the key 'out' stands there twice"),
        ("out: o", "adapters must be a list"),
        ("adapters: a\nout: o", "adapters must be a list"),
        ("adapters: []\nout: o", "no adapter given"),
        ("adapters: [a, x/a]\nout: o", "two adapters are called 'a'"),
        ("adapters: [{source: a, wight: 2}]\nout: o", "adapter 1: the key 'wight'.*did you mean 'weight'"),
        ("adapters: [{name: a}]\nout: o", "it needs a source"),
        ("adapters: [{source: a, model: b}]\nout: o", "and one of the two"),
        ("adapters: [3]\nout: o", "its source is 3"),
        ("adapters: [{source: a, weight: much}]\nout: o", "weight='much' must be a finite number"),
        ("adapters: [{source: a, weight: yes}]\nout: o", "weight=True must be a finite number"),
        ("adapters: [a]\nout: 3", "out is 3; it must be text"),
        ("adapters: [{source: a, weight: 2}]\nweights: nan", "give one or the other"),
        ("adapters: [a]\nout: o\noverwrite: 3", "overwrite=3 must be true or false"),
        ("adapters: [a]\nout: o\nmethod: tis", "did you mean 'ties'"),
        ("adapters: [a]\nout: o\nrank: much", "reading the recipe r.yaml: rank='much' must be a whole number"),
        ("adapters: [a]\nout: o\nmethod: linear\ndensity: 0.3", "the key 'density' is not known"),
        ("adapters: [a]\nout: !!python/object:os.system x", "it is not valid YAML"),
        ("adapters: [a]\nout: o\n? [b]\n: c", "cannot be a key"),
    ],
)
def test_bad_recipes(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_recipe(text, "r.yaml")


def test_run(invoke, tiny_base, loras, tmp_path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"base: '{tiny_base}'\nadapters:\n- {{name: m, source: '{loras / 'math'}', weight: 0.5}}\n"
        f"- '{loras / 'code'}'\nmethod: saliency\nrank: 3\niterations: 2\nout: merged\n",
        encoding="utf-8",
    )
    result = invoke("run", "r.yaml", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["output"]["rank"] == 3
    assert [item.weight for item in read_report("merged").record.inputs] == [0.5, 1.0]
    assert invoke("run", "r.yaml").exit_code == 2  # it exists
    assert invoke("run", "r.yaml", "--overwrite").exit_code == 0
    assert invoke("run", "r.yaml", "--out", "second", "-q").stdout == ""
    assert (tmp_path / "second" / "adapter_config.json").is_file()


def test_run_of_a_missing_or_wrong_file(invoke, tmp_path) -> None:
    result = invoke("run", "none.yaml")
    assert result.exit_code == 2
    assert result.stderr == "error: reading the recipe none.yaml: No such file or directory\n"
    for text, said in (("", "nowhere to put the merged adapter"), ("out: o\nprivate: true", "give --push-to-hub")):
        (tmp_path / "r.yaml").write_text(f"adapters: [a]\n{text}")
        assert said in invoke("run", "r.yaml").stderr
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert invoke("run", "bad.yaml").exit_code == 2


def test_weights_by_module() -> None:
    text = RECIPE.replace("out:", "modules:\n  '*.mlp.*': 0.5\n  layers.0.*:\n    math: 0\nout:")
    request = parse_recipe(text, "r.yaml")
    assert plan(request.method, request.options).record()["modules"] == {"*.mlp.*": 0.5, "layers.0.*": {"math": 0.0}}
    with pytest.raises(OptionError, match=r"reading the recipe r.yaml: modules\['x'\]='y' must be a finite number"):
        parse_recipe(RECIPE.replace("out:", "modules: {x: y}\nout:"), "r.yaml")
