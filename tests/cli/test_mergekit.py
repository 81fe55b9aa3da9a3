"""A configuration of mergekit as a recipe: the same merge, or the word for what cannot be the same.

The figures are computed densely from the adapters' files, by what mergekit's methods say.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cli.conftest import write_adapter
from samerge import OptionError
from samerge.cli.recipe import parse_recipe

HEAD = (
    "base_model: b\nmodels:\n- model: b+l/x\n  parameters: {weight: 0.5%s}\n"
    "- model: b+l/y\n  parameters: {weight: %s%s}\n"
)


def config(method: str, more: str = "", each: str = "", second: str = "0.5") -> str:
    return f"merge_method: {method}\n" + HEAD % (each, second, each) + more


def read(text: str):
    request = parse_recipe(text, "m.yaml", {"out": "o"})
    return request, dict(request.options), [(one.name, one.source, one.weight) for one in request.adapters]


@pytest.mark.parametrize(
    ("text", "method", "weights", "options"),
    [
        (config("linear"), "linear", (0.5, 0.5), {"scaling": 1.0}),
        (config("linear", second="1.5"), "linear", (0.25, 0.75), {"scaling": 1.0}),
        (config("linear", "parameters: {normalize: false}"), "linear", (0.5, 0.5), {"scaling": 1.0}),
        (config("task_arithmetic", "parameters: {lambda: 0.7}"), "linear", (0.5, 0.5), {"scaling": 0.7}),
        (config("task_arithmetic", "parameters: {normalize: true}", "", "1.5"), "linear", (0.25, 0.75), {"scaling": 1}),
        (
            config("ties", "dtype: bfloat16\nparameters: {int8_mask: true}", ", density: 0.3"),
            "ties",
            (1.0, 1.0),
            {"trim": "layer", "aggregate": "mean", "density": 0.3, "scaling": 1.0, "dtype": "bfloat16"},
        ),
        (
            config("ties", "parameters: {normalize: false, density: 0.4}", "", "0.3"),
            "ties",
            (0.5, 0.3),
            {"trim": "layer", "aggregate": "sum", "density": 0.4, "scaling": 1.0},
        ),
        (
            config("dare_ties", "parameters: {density: 0.5}\nout_dtype: float16", "", "0.3"),
            "dare-ties",
            (0.5, 0.3),
            {"aggregate": "sum", "density": 0.5, "scaling": 1.0, "dtype": "float16"},
        ),
        (config("dare_linear"), "dare", (0.5, 0.5), {"density": 1.0, "scaling": 1.0}),
        (
            config("della", "parameters: {density: 0.5}"),
            "della",
            (1.0, 1.0),
            {"aggregate": "mean", "density": 0.5, "epsilon": 0.15, "scaling": 1.0},
        ),
        (
            config("della_linear", "parameters: {density: 0.5, epsilon: 0.1}"),
            "della",
            (0.5, 0.5),
            {"elect": False, "density": 0.5, "epsilon": 0.1, "scaling": 1.0},
        ),
        (
            config("breadcrumbs", "parameters: {density: 0.9, gamma: 0.2}"),
            "breadcrumbs",
            (0.5, 0.5),
            {"density": 0.9, "top": pytest.approx(0.1), "scaling": 1.0},
        ),
    ],
)
def test_methods(text, method, weights, options):
    request, found, adapters = read(text)
    assert (request.base, request.method) == ("b", method)
    assert adapters == [("x", "l/x", weights[0]), ("y", "l/y", weights[1])]
    assert found == options
    assert bool(request.notes) == (method != "linear")


def test_the_base_counts_in_a_mean_of_models_and_not_among_task_vectors():
    text = "merge_method: %s\nbase_model: b\nmodels:\n- {model: b, parameters: {weight: 1}}\n" + (
        "- {model: b+x@v2, parameters: {weight: 1}}\n- {model: {model: b, lora: {path: z/x, revision: r}}, "
        "parameters: {weight: 2}}\n"
    )
    assert read(text % "linear")[2] == [("x", "x@v2", 0.25), ("x-2", "z/x@r", 0.5)]
    assert read(text % "task_arithmetic")[2] == [("x", "x@v2", 1.0), ("x-2", "z/x@r", 2.0)]


def test_weights_by_filter():
    """mergekit's first filter that matches wins, our last pattern does."""
    weight = "[{filter: mlp, value: 0.2}, {filter: q_proj, value: 0}, {value: 0.6}]"
    _, options, adapters = read(config("task_arithmetic", second=weight))
    assert adapters == [("x", "l/x", 0.5), ("y", "l/y", 1.0)]
    assert options["modules"] == {"*": {"y": 0.6}, "*q_proj*": {"y": 0.0}, "*mlp*": {"y": 0.2}}
    assert list(options["modules"]) == ["*", "*q_proj*", "*mlp*"]


def test_tokenizers_are_told():
    assert "tokenizer_source is left out" in read(config("linear", "tokenizer_source: base"))[0].notes[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (config("slerp"), "merge_method is 'slerp', which samerge has no counterpart of. It reads linear, task_"),
        (config("tis"), "did you mean 'ties'"),
        (config("ties", second="0.3"), "Give equal weights, or normalize: false, where both do the same"),
        (config("linear", "parameters: {normalize: false}", "", "0.6"), "sum to 1.1: that scales the base"),
        (config("ties", "slices: []"), "it has 'slices', pieces of models put together"),
        (config("ties", "basemodel: x"), "the key 'basemodel' is not known; did you mean 'base_model'"),
        (config("ties", "parameters: {gama: 1}"), "ties has no parameter 'gama'"),
        (config("linear", "parameters: {lambda: 2}"), "linear has no parameter 'lambda'"),
        (config("dare_ties", "parameters: {rescale: false}"), "samerge's dare-ties always rescales"),
        (config("ties", "parameters: {rescale: true}"), "samerge's ties never rescales"),
        (config("ties", "parameters: {density: 0}"), "density is 0; it must lie in"),
        (config("ties", "parameters: {density: [1, 0.5]}"), "one number for all layers"),
        (config("task_arithmetic", second="[0, 1]"), "a gradient over the layers"),
        (config("task_arithmetic", second="[{filter: mlp, value: 1}]"), "says nothing of the other modules"),
        (config("linear", second="[{filter: mlp, value: 1}, {value: 0}]"), "by filter and normalize together"),
        (config("ties").replace("b+l/y", "other/model"), "other/model is a whole model; samerge merges adapters"),
        (config("ties").replace("b+l/y", "c+l/y"), r"c\+l/y is an adapter of c, the base is b"),
        (config("ties").replace("base_model: b\n", ""), "it has no base_model, which ties needs"),
        (config("ties").replace("base_model: b\n", "base_model: b+l\n"), "has to be baked first"),
        (config("ties").replace("b+l", "b+l+m"), "it must be a model, or BASE"),
        (config("ties").replace("weight: 0.5", "wait: 1"), "has no weight, which mergekit needs, too"),
        (config("ties", "dtype: int8"), "dtype='int8' is not one to write in"),
        ("merge_method: linear\nmodels: []", "must be a list of models"),
        ("merge_method: linear\nmodels: [{model: b, parameters: {weight: 1}}]", "it has no adapter"),
        ("merge_method: linear\nmodels: [{model: 3}]", "it is 3; it must be a model"),
        ("merge_method: linear\nmodels: [3]", "it is 3; it must be a mapping"),
    ],
)
def test_what_cannot_be(text, said):
    with pytest.raises(OptionError, match=said):
        parse_recipe(text, "m.yaml", {"out": "o"})


def dense(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text())
    scale = scale["lora_alpha"] / scale["r"]
    stems = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {s: scale * tensors[f"{s}.lora_B.weight"] @ tensors[f"{s}.lora_A.weight"] for s in stems}


@pytest.mark.parametrize("normalize", [True, False])
def test_the_merge_is_mergekits(invoke, tiny_base, tmp_path, normalize):
    """Its `ties`, computed densely, at full rank; run as it is, and by way of the recipe that `init` writes."""
    x, y = (dense(write_adapter(tmp_path / name, seed)) for seed, name in ((5, "x"), (6, "y")))
    second = 0.5 if normalize else 0.2
    models = [
        {"model": f"{tiny_base}+{tmp_path / name}", "parameters": {"weight": weight, "density": 0.5}}
        for name, weight in (("x", 0.5), ("y", second))
    ]
    table = {"models": models, "merge_method": "ties", "base_model": str(tiny_base)}
    table["parameters"] = {"normalize": normalize, "lambda": 0.9}
    (tmp_path / "m.yml").write_text(yaml.safe_dump(table))
    done = invoke("run", "m.yml", "--out", "merged")
    assert done.exit_code == 0, done.output
    assert "cut to the rank of its largest source, where a recipe does not say another rank" in " ".join(
        done.stderr.split()
    )
    made = invoke("init", "m.yml")
    assert made.exit_code == 0, made.output
    recipe = (tmp_path / "recipe.yaml").read_text().replace("# rank: N", "rank: 16").replace("merged/", "whole/")
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert invoke("run", "recipe.yaml").exit_code == 0
    assert invoke("init", "recipe.yaml", "--out", "r2.yaml").stderr.startswith("error: recipe.yaml is a recipe already")
    found = dense(tmp_path / "whole")
    for module in x:
        values = []
        for tau, weight in ((x[module], 0.5), (y[module], second)):
            limit = tau.abs().flatten().sort(descending=True).values[tau.numel() // 2 - 1]
            values.append(weight * tau * (tau.abs() >= limit))
        stacked = torch.stack(values)
        agree = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
        merged = (stacked * agree).sum(0)
        if normalize:
            merged = merged / (0.5 * agree.sum(0)).clamp_min(0.5)
        torch.testing.assert_close(found[module], 0.9 * merged, rtol=1e-4, atol=1e-4)
    ranks = {
        name: json.loads((tmp_path / name / "adapter_config.json").read_text())["r"] for name in ("merged", "whole")
    }
    assert ranks == {"merged": 4, "whole": 16}


def test_the_page_shows_the_same_merge_twice():
    page = (Path(__file__).resolve().parents[2] / "docs" / "mergekit.md").read_text(encoding="utf-8")
    theirs, ours = re.findall(r"^```yaml\n(# (?:mergekit|samerge)\n.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    found, written = parse_recipe(theirs, "theirs", {"out": "merged/"}), parse_recipe(ours, "ours")
    assert found.notes
    assert replace(found, notes=()) == written
