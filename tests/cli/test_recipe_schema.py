"""The JSON schema of recipes says what the reader of recipes does, for every option of every method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from samerge import OptionError
from samerge.cli.init import recipe_text
from samerge.cli.named_adapter import AdapterSpec
from samerge.cli.recipe import parse_recipe
from samerge.cli.recipe_schema import recipe_schema
from samerge.methods.registry import _files, available_methods, find
from samerge.options.common import CommonOptions
from samerge.options.option import table

jsonschema = pytest.importorskip("jsonschema")

OWN = [name for name in available_methods() if name in _files()]
SCHEMA = recipe_schema(OWN)
CHECK = jsonschema.Draft7Validator(SCHEMA)
PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "recipe.schema.json"
VALUES = [
    *(
        -1,
        0,
        0.05,
        0.5,
        1,
        1.0,
        2,
        16,
        1e9,
        1.5,
        True,
        False,
        "x",
        "",
        "auto",
        "auto:1.3",
        "auto:",
        "auto:-1",
        "auto:x",
    ),
    *("lines:0.2:0.8", "adaptive", "norm"),
    *("none", "float32", "int8", "average", "take:a", "take:", "drop", "exact", "exact:0", "exact:8", "flow"),
    *("local", "layer", "adapter", "total", "mean", "sum", "native", "svd", "paper", "task", "linear", "ties"),
    *({"*.mlp.*": 0.5}, {"a": {"b": 1}}, {"a": {}}, {}, {"": 1}, {"a": "x"}, [], [0.5]),
]


def fits(recipe: object) -> bool:
    return not list(CHECK.iter_errors(recipe))


def test_it_is_a_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_the_published_file_is_that_of_the_tables():
    """`samerge init --schema > docs/recipe.schema.json` writes it anew."""
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == json.loads(json.dumps(SCHEMA))


@pytest.mark.parametrize("method", [None, *OWN])
def test_what_init_writes_fits(method):
    specs = (AdapterSpec("math", "./a"), AdapterSpec("code", "b/c@v2", -0.5))
    text = recipe_text(specs, "a/base", method)
    assert fits(yaml.safe_load(text))
    for row in table(find(method or "saliency").options):
        if row.default is not None:
            assert fits(yaml.safe_load(text) | {row.name: row.default}), row.name


@pytest.mark.parametrize("method", OWN)
def test_values_that_fit_are_read_and_others_refused(method):
    for row in (*table(find(method).options), *table(CommonOptions)):
        assert row.kind.schema, row.name
        for value in VALUES:
            told = fits({"adapters": ["a"], "method": method, row.name: value})
            try:
                row.read(value)
            except OptionError:
                assert not told, (row.name, value)
            else:
                if row.kind.annotation == "str" and row.kind.metavar == "NAME":
                    continue  # any text, and what can be told as text
                truth = row.kind.annotation == "bool" and value in (0, 1)  # a recipe has true and false for it
                assert told or truth or value == "none", (row.name, value)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("adapters: [a]", True),
        ("adapters: {a: x, b: {source: y, weight: -1}}\npush_to_hub: a/b\nprivate: true", True),
        ("adapters: [a, b]\nweights: [1, 0.5]", True),
        ("adapters: [a, b]\nweights: nan", True),
        ("adapters: [a]\nmethod: ties_svd\ndensity: 0.2", True),
        ("adapters: [a]\nmethod: paper\nbasis: svd\nsvd_rank: 3", True),
        ("adapters: [a]\niterations: 3", True),  # the default's
        ("adapters: [a]\nbasis: svd", False),
        ("adapters: [a]\nmethod: linear\ndensity: 0.2", False),
        ("adapters: [a]\nmethod: tis", False),
        ("adapters: [a]\nout: 3", False),
        ("adapters: [a]\noverwrite: 3", False),
        ("adapters: []", False),
        ("adapters: a", False),
        ("adapters: [{name: a}]", False),
        ("adapters: [{source: a, model: b}]", False),
        ("adapters: [{source: a, wight: 1}]", False),
        ("adapters: [{source: a, weight: x}]", False),
        ("out: o", False),
        ("adapters: [a]\ndensty: 1", False),
    ],
)
def test_the_schema_and_the_reader_agree(text, right):
    assert fits(yaml.safe_load(text)) == right
    if right:
        parse_recipe(text, "r")
    else:
        with pytest.raises(OptionError):
            parse_recipe(text, "r")


def test_a_key_of_every_place_is_explained():
    for name, shape in SCHEMA["properties"].items():
        assert shape["description"], name


def test_the_shell_prints_it(invoke):
    assert json.loads(invoke("init", "--schema").stdout)["properties"].keys() == SCHEMA["properties"].keys()
