"""What does not fit: an error that lists it, or the base's tensors, as the option says."""

import json
import re
import shutil

import pytest
import torch
from alike import same_values
from herd import read
from safetensors.torch import save_file

import samerge
from samerge.errors import BaseModelError, GraphError, HubError, OptionError
from samerge.graph import FlowGraph, Weight
from samerge.merging.alignment.checkpoints import same_names

UP = "model.layers.0.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"


@pytest.fixture
def changed(llama, tmp_path):
    """A copy of an expert, or of the base, with some tensors changed."""

    def make(change, of="math", config=None):
        source = llama.base if of == "base" else llama.experts[of]
        from pathlib import Path

        folder = tmp_path / f"{of}-changed"
        folder.mkdir()
        tensors = read(Path(source))
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((Path(source) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **(config or {})}))
        return folder

    return make


def merge(base, experts, **options):
    return samerge.merge_full(base, experts, **{"iterations": 1, "density": 0.5, "progress": False, **options})


CHANGES = {
    "lacks": (lambda t: t.pop(UP), f"odd lacks {UP} (24, 32)"),
    "adds": (lambda t: t.update(extra=torch.zeros(3)), "odd adds extra (3,)"),
    "shape": (
        lambda t: t.update({EMBED: torch.zeros(44, 32).double()}),
        f"{EMBED} is (40, 32) in the base, (44, 32) in",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_mismatched_tensors(llama, changed, what):
    change, words = CHANGES[what]
    odd = changed(change)
    experts = {"odd": odd, "code": llama.experts["code"]}
    with pytest.raises(BaseModelError, match=re.escape(words)) as caught:
        merge(llama.base, experts)
    assert "mismatched='base' keeps the base's tensors there" in str(caught.value)
    merged = merge(llama.base, experts, mismatched="base")
    record = merged.report.record
    assert [(item["expert"], item["what"]) for item in record.mismatched] == [("odd", what)]
    [item] = record.mismatched
    base = read(llama.base)
    assert set(merged.shapes) == set(base)
    if what != "adds":
        assert torch.equal(merged.tensor(item["tensor"]), base[item["tensor"]])
        assert any("stay the base's" in warning for warning in merged.report.warnings)
        assert item["tensor"] not in record.outside["tensors"]
    else:
        assert any("that the base does not have are left out: extra of odd" in w for w in merged.report.warnings)
    other = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(merged.tensor(other), base[other])


def test_the_error_lists_six_and_counts_the_rest(llama, changed):
    odd = changed(lambda tensors: [tensors.pop(name) for name in sorted(tensors)[:9]])
    with pytest.raises(BaseModelError, match=r"odd lacks .*; and 3 more\. Are they checkpoints of this base"):
        merge(llama.base, {"odd": odd})


def test_a_tied_copy_is_no_difference(llama, changed):
    odd = changed(
        lambda tensors: tensors.update({"again.weight": tensors[EMBED].clone()}), config={"tie_word_embeddings": True}
    )
    assert merge(llama.base, {"odd": odd}).report.record.mismatched == ()


def test_a_model_with_a_head_on_a_base_without_one(herd_of, tmp_path):
    """BertModel's tensors have a prefix in BertForSequenceClassification, whose head is another tensor."""
    herd = herd_of("bert")
    base = herd.model(herd.base).bert
    base.save_pretrained(tmp_path / "headless")
    with pytest.raises(BaseModelError, match="math adds classifier"):
        merge(tmp_path / "headless", herd.experts)
    merged = merge(tmp_path / "headless", herd.experts, mismatched="base", density=1, scaling=1.0, outside="sum")
    assert {item["tensor"] for item in merged.report.record.mismatched} == {"classifier.bias", "classifier.weight"}
    plain = merge(herd.base, herd.experts, density=1, scaling=1.0, outside="sum")
    for name in merged.shapes:
        same_values(merged.tensor(name), plain.tensor(f"bert.{name}"), 1e-12)
    back = merge(herd.base, {"a": tmp_path / "headless"}, mismatched="base")
    assert {item["what"] for item in back.report.record.mismatched} == {"lacks"}


def test_names_by_prefix():
    ours = ["layer.0.q", "layer.1.q", "norm"]
    assert same_names(ours, ours) == {name: name for name in ours}
    assert same_names(ours, [f"bert.{name}" for name in ours]) == {name: f"bert.{name}" for name in ours}
    assert same_names([f"model.x.{n}" for n in ours], ours) == {f"model.x.{n}": n for n in ours}
    assert same_names(ours, ["other"]) == {}


def test_whole_numbers_must_be_equal(llama, changed):
    def ids(start):
        return lambda tensors: tensors.update(position_ids=torch.arange(start, start + 4))

    base, same = changed(ids(0), of="base"), changed(ids(0), of="math")
    odd = changed(ids(1), of="code")
    merged = merge(base, {"same": same})
    assert torch.equal(merged.tensor("position_ids"), torch.arange(4))
    with pytest.raises(BaseModelError, match=r"odd has other whole numbers in position_ids \(4,\)"):
        merge(base, {"same": same, "odd": odd})
    merged = merge(base, {"same": same, "odd": odd}, mismatched="base", dtype="float32")
    assert torch.equal(merged.tensor("position_ids"), torch.arange(4))


def test_buffers_that_only_one_of_them_saved(llama, changed):
    """Versions of transformers differ in what they save beside the parameters."""
    inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
    base = changed(lambda t: t.update({"position_ids": torch.arange(4), inv_freq: torch.ones(2)}), of="base")
    odd = changed(lambda t: t.update({"other_ids": torch.arange(4), "x.inv_freq": torch.ones(2)}))
    merged = merge(base, {"odd": odd, "code": llama.experts["code"]})
    assert merged.report.record.mismatched == ()
    assert torch.equal(merged.tensor("position_ids"), torch.arange(4))
    assert torch.equal(merged.tensor(inv_freq), torch.ones(2))
    assert set(merged.shapes) == set(read(base))


def test_values_that_are_not_finite(llama, changed):
    odd = changed(lambda tensors: tensors[UP][3].fill_(float("nan")))
    with pytest.raises(BaseModelError, match=rf"merging the weight '{UP}': .*not finite in the base or in odd; check"):
        merge(llama.base, {"odd": odd, "code": llama.experts["code"]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0}, "density=0 must lie in"),
        ({"density": 1.1}, "density=1.1 must lie in"),
        ({"iterations": 0}, "iterations=0 must be a whole number"),
        ({"scaling": "loud"}, "scaling='loud' must be a finite number"),
        ({"scaling": float("nan")}, "scaling=nan must be a finite number"),
        ({"agreement": "absolute"}, "agreement='absolute' is not known; choose one of paper, task"),
        ({"outside": "drop"}, "outside='drop' is not known; choose one of average, sum, base"),
        ({"mismatched": "skip"}, "mismatched='skip' is not known; choose one of error, base"),
        ({"connectivity": "global"}, "connectivity='global' is not known"),
        ({"method": "none"}, "method='none' is not known"),
        ({"dtype": "int8"}, "dtype='int8' is not one to write"),
        ({"dtype": torch.float8_e4m3fn}, "is not one to write"),
        ({"weights": [1.0]}, "1 weights for 3 experts"),
        ({"weights": {"math": 1.0}}, "weights must name every expert and no other: none given for"),
        ({"weights": [0, 0, 0]}, "every expert has the weight 0"),
    ],
)
def test_options(llama, options, words):
    with pytest.raises(OptionError, match=re.escape(words)):
        merge(llama.base, llama.experts, **options)


def test_experts_that_are_none(llama, tmp_path):
    with pytest.raises(OptionError, match="experts is empty; give at least one"):
        merge(llama.base, {})
    with pytest.raises(OptionError, match=r"experts='.*' is a single one; give a list or a mapping"):
        merge(llama.base, str(llama.base))
    with pytest.raises(OptionError, match="the expert name 'math' occurs more than once"):
        merge(llama.base, [llama.experts["math"]] * 2)
    with pytest.raises((BaseModelError, HubError), match="no such folder"):
        merge(llama.base, {"a": tmp_path / "nowhere"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match=r"there is no config\.json"):
        merge(llama.base, {"a": tmp_path / "empty"})


def test_a_live_model_with_adapters_beside_its_weights(llama):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama.model(llama.base), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(OptionError, match=r"the expert 'lora' is a PeftModel.*model\.merge_and_unload\(\)"):
        merge(llama.base, {"lora": model})
    merged = merge(model, llama.experts)  # as a base it is read below its adapters
    assert set(merged.shapes) == set(read(llama.base))


def test_checkpoints_of_another_model(llama, herd_of):
    with pytest.raises(BaseModelError, match="Are they checkpoints of this base"):
        merge(llama.base, herd_of("gpt2").experts)
    with pytest.raises(BaseModelError, match="not one weight of the flow graph is shared by all experts"):
        merge(llama.base, herd_of("gpt2").experts, mismatched="base")


def test_an_unknown_architecture(llama, changed):
    base = changed(lambda tensors: None, of="base", config={"model_type": "mystery"})
    with pytest.raises(GraphError, match="connectivity"):
        merge(base, llama.experts)
    merged = merge(base, llama.experts, connectivity="local")
    assert set(merged.transposed) == {name for name in read(llama.base) if name.endswith("_proj.weight")}
    assert any("different model types" in warning for warning in merged.report.warnings)


def test_a_graph_of_ones_own(llama):
    down = "model.layers.0.mlp.down_proj.weight"
    merged = merge(
        llama.base, llama.experts, connectivity=FlowGraph([Weight("x", "h", UP), Weight("h", "y", down)], "x", "y")
    )
    assert set(merged.transposed) == {UP, down}
    assert merged.report.record.options["connectivity"] == "custom graph"
    with pytest.raises(GraphError, match=r"the flow graph has weights that the base .* does not: \['nothing'\]"):
        merge(llama.base, llama.experts, connectivity=FlowGraph([Weight("x", "y", "nothing")], "x", "y"))


def test_no_such_tensor(llama):
    with pytest.raises(OptionError, match=r"the model has no tensor 'nothing'; it has e\.g\."):
        merge(llama.base, llama.experts).tensor("nothing")


def test_a_failed_run_leaves_no_work_folder(llama, changed, tmp_path):
    odd = changed(lambda tensors: tensors[UP][3].fill_(float("inf")))
    with pytest.raises(BaseModelError, match="not finite"):
        merge(llama.base, {"odd": odd}, work_dir=tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("outside", ["average", "base"])
@pytest.mark.parametrize("where", ["base", "expert"])
def test_what_is_written_is_finite_outside_the_graph_too(llama, changed, tmp_path, tensor, value, outside, where):
    odd = changed(lambda tensors: tensors[tensor].view(-1)[3].fill_(value))
    base, experts = (odd, llama.experts) if where == "base" else (llama.base, {"odd": odd})
    options = {"iterations": 1, "outside": outside, "progress": False}
    if outside == "average":
        with pytest.raises(BaseModelError, match=f"merging the weight '{tensor}': it holds values that are not finite"):
            samerge.merge_full(base, experts, **options)
        return
    merged = samerge.merge_full(base, experts, **options)
    if where == "expert":
        merged.save(tmp_path / "out")
        return
    with pytest.raises(BaseModelError, match=f"writing '{tensor}': it holds NaN or infinite values"):
        merged.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update({UP: "../model.safetensors"}), r"names '\.\./model\.safetensors' as a shard"),
        (lambda m: m.update({UP: "/etc/model.safetensors"}), "as a shard; it must be the name of a"),
        (lambda m: m.update({UP: "config.json"}), "as a shard; it must be the name of a"),
        (lambda m: m.update({UP: 3}), "weight_map=.*it must be an object, each value a text"),
        (lambda m: m.update({UP: "two.safetensors"}), "shards model.safetensors and two.safetensors both hold"),
        (lambda m: m.update({"nothing": "model.safetensors"}), "'nothing' lies in model.safetensors, which does not"),
        (lambda m: m.update({"nothing": "lost.safetensors"}), "names the shard lost.safetensors, which is not in"),
    ],
)
def test_an_index_that_does_not_hold(llama, tmp_path, edit, words):
    base = tmp_path / "base"
    shutil.copytree(llama.base, base)
    shutil.copyfile(base / "model.safetensors", base / "two.safetensors")
    where = dict.fromkeys(read(llama.base), "model.safetensors")
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    merge(base, llama.experts)
    edit(where)
    index.write_text(json.dumps({"weight_map": where}))
    with pytest.raises(BaseModelError, match=words):
        merge(base, llama.experts)
