"""`modules_to_save` and `trainable_token_indices`: by choice, never in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import samerge
from pitfalls.lab import EXACT, EXACT_LIVE, assert_untouched, bert, close, llama, output, quiet, snapshot


def change_saved(seed: int):
    def change(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)

    return change


def heads(lab, **more) -> list[str]:
    """Two classifiers' adapters, the second of which also trained the pooler."""
    settings = {"task_type": "SEQ_CLS", "target_modules": ["query"], **more}
    first = lab.train("a", change_saved(1), **settings)
    return [first, lab.train("b", change_saved(2), **settings, modules_to_save=["pooler.dense"])]


def saved(folder: str) -> dict[str, torch.Tensor]:
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "lora_" not in name}


def test_without_a_choice_it_is_an_error_that_lists_them(bench) -> None:
    lab = bench(bert)
    folders = heads(lab)
    with pytest.raises(samerge.AdapterError) as caught:
        lab.merge(*folders)
    for words in (
        "first: classifier.bias, classifier.weight",
        "second: ",
        "'average'",
        "'update'",
        "'take:<adapter>'",
        "'drop'",
    ):
        assert words in str(caught.value)
    model = lab.with_adapters(folders[0])
    with pytest.raises(samerge.AdapterError, match="first: classifier"):
        samerge.add_weighted_adapter(model, ["first"], combination_type="paper")
    assert list(model.peft_config) == ["first"]


def test_average(bench) -> None:
    """The plain mean of the adapters that have it, whatever their weights."""
    lab = bench(bert)
    folders = heads(lab)
    one, two = (saved(folder) for folder in folders)
    merged = samerge.merge(lab.base, folders, weights=[1.0, 0.2], modules_to_save="average", **EXACT)
    model = lab.reloaded(merged)
    inner = model.get_base_model()
    key = "base_model.model.classifier.weight"
    close(inner.classifier.modules_to_save["first"].weight, (one[key] + two[key]) / 2)
    pooler = "base_model.model.bert.pooler.dense.weight"
    assert pooler not in one
    close(inner.bert.pooler.dense.modules_to_save["first"].weight, two[pooler])
    assert "vLLM will not serve it" in " ".join(merged.report.warnings)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -0.3]])
def test_update(bench, weights: list[float]) -> None:
    """base + sum_n w_n (trained_n - base), of those that have it."""
    lab = bench(bert)
    folders = heads(lab)
    trained = [saved(folder) for folder in folders]
    base = {f"base_model.model.{name}": tensor for name, tensor in lab.model.state_dict().items()}
    merged = samerge.merge(lab.base, folders, weights=weights, modules_to_save="update", **EXACT)
    found = {name: tensor for name, tensor in merged.tensors().items() if "lora_" not in name}
    assert found.keys() == trained[0].keys() | trained[1].keys()
    for name, tensor in found.items():
        changes = [w * (one[name] - base[name]) for w, one in zip(weights, trained, strict=True) if name in one]
        close(tensor, base[name] + sum(changes))
    assert merged.report.record.json()["options"]["modules_to_save"] == "update"
    with quiet():
        lab.reloaded(merged)


def test_update_of_one_adapter_is_itself(bench) -> None:
    lab = bench(bert)
    folder = heads(lab)[1]
    alone = lab.merge(folder, modules_to_save="update")
    for name, tensor in saved(folder).items():
        close(alone.tensors()[name], tensor)
    with quiet():
        close(output(lab.reloaded(alone)), output(lab.with_adapters(folder)))


def test_update_needs_the_base_and_its_weights(bench, tmp_path: Path) -> None:
    lab = bench(bert)
    folders = heads(lab)
    with pytest.raises(samerge.OptionError, match=r"modules_to_save='update' adds.*no base was given; give base="):
        samerge.merge(None, folders, method="linear", modules_to_save="update", progress=False)
    plain = lab.train("plain", target_modules=["query"])
    samerge.merge(None, [plain], method="linear", modules_to_save="update", progress=False)
    headless = {name: p for name, p in lab.model.state_dict().items() if not name.startswith("classifier")}
    shutil.copytree(lab.base, tmp_path / "headless")
    save_file(headless, tmp_path / "headless" / "model.safetensors")
    with pytest.raises(samerge.BaseModelError, match=r"'classifier.bias' of 'a', 'b'.*has no such weight"):
        samerge.merge(str(tmp_path / "headless"), folders, modules_to_save="update", **EXACT)


def test_take(bench) -> None:
    lab = bench(bert)
    folders = heads(lab)
    merged = lab.merge(*folders, modules_to_save="take:first")
    found = {name: tensor for name, tensor in merged.tensors().items() if "lora_" not in name}
    assert found.keys() == saved(folders[0]).keys()
    for name, tensor in saved(folders[0]).items():
        close(found[name], tensor)
    alone = lab.merge(folders[0], modules_to_save="take:first")
    with quiet():
        close(output(lab.reloaded(alone)), output(lab.with_adapters(folders[0])))


def test_drop(bench) -> None:
    lab = bench(bert)
    merged = lab.merge(*heads(lab), modules_to_save="drop")
    assert not [name for name in merged.tensors() if "lora_" not in name]
    assert merged.settings["modules_to_save"] is None
    with quiet():
        lab.reloaded(merged)
    assert any(warning.startswith("dropped, as modules_to_save='drop'") for warning in merged.report.warnings)


def test_live(bench) -> None:
    lab = bench(bert)
    first, second = heads(lab)
    with quiet():
        model = lab.with_adapters(first)
        expected, before = output(model), snapshot(model)
        samerge.add_weighted_adapter(model, ["first"], None, "merged", modules_to_save="average", **EXACT_LIVE)
        assert_untouched(before, model, "merged")
        model.set_adapter("merged")
        close(output(model), expected)
        model.load_adapter(second, adapter_name="second")
        merged = samerge.add_weighted_adapter(
            model, ["first", "second"], None, "both", modules_to_save="average", **EXACT_LIVE
        )
        model.set_adapter("both")
        close(output(model), output(lab.reloaded(merged)))
        samerge.add_weighted_adapter(model, ["first", "second"], None, "bare", modules_to_save="drop", **EXACT_LIVE)
        model.set_adapter("bare")
        close(output(model), output(lab.reloaded(lab.merge(first, second, modules_to_save="drop"))))


@pytest.mark.parametrize("tied", [False, True])
def test_token_rows(bench, tied: bool) -> None:
    lab = bench(llama, tie_word_embeddings=tied)
    settings = {"target_modules": ["q_proj"]}
    first = lab.train("a", change_saved(1), **settings, trainable_token_indices=[5, 3])
    second = lab.train("b", change_saved(2), **settings, trainable_token_indices={"embed_tokens": [9, 5]})
    with pytest.raises(samerge.AdapterError, match=r"first: model.embed_tokens; second: model.embed_tokens"):
        lab.merge(first, second)
    with quiet():
        alone = lab.merge(first, modules_to_save="average")
        close(output(lab.reloaded(alone)), output(lab.with_adapters(first)))
        merged = lab.merge(first, second, modules_to_save="average")
        model = lab.reloaded(merged)
        updated = lab.merge(first, second, modules_to_save="update")
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    one, two = (saved(folder)[key] for folder in (first, second))
    # PEFT keeps the rows in the order of the indices it was given
    row = dict(
        zip(merged.settings["trainable_token_indices"]["model.embed_tokens"], merged.tensors()[key], strict=True)
    )
    assert sorted(row) == [3, 5, 9]
    close(row[3], one[1])
    close(row[5], (one[0] + two[1]) / 2)
    close(row[9], two[0])
    base = lab.model.get_input_embeddings().weight.detach()
    close(updated.tensors()[key], torch.stack([one[1], one[0] + two[1] - base[5], two[0]]))
    embedding = model.get_input_embeddings()
    ids = torch.tensor([[3, 5, 9, 4]])
    close(embedding(ids)[0], torch.stack([row[3], row[5], row[9], lab.model.get_input_embeddings().weight[4]]))


def test_token_rows_live(bench) -> None:
    lab = bench(llama)
    first = lab.train("a", change_saved(1), target_modules=["q_proj"], trainable_token_indices=[3, 5])
    with quiet():
        model = lab.with_adapters(first)
        expected, before = output(model), snapshot(model)
        samerge.add_weighted_adapter(model, ["first"], None, "merged", modules_to_save="average", **EXACT_LIVE)
        assert_untouched(before, model, "merged")
        model.set_adapter("merged")
        close(output(model), expected)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("take:nobody", r"'take:nobody' names no adapter of this merge; choose one of \['first', 'second'\]"),
        ("mean", "modules_to_save='mean' is not known; choose one of average, update, drop, take:ADAPTER"),
    ],
)
def test_choices_that_mean_nothing(bench, choice: str, words: str) -> None:
    lab = bench(bert)
    with pytest.raises(samerge.OptionError, match=words):
        lab.merge(*heads(lab), modules_to_save=choice)


def test_an_adapter_of_weight_0_needs_no_choice(bench) -> None:
    lab = bench(bert)
    plain = lab.train("c", target_modules=["query"])
    merged = samerge.merge(lab.base, [heads(lab)[0], plain], weights=[0.0, 1.0], **EXACT)
    assert not [name for name in merged.tensors() if "lora_" not in name]


def test_shapes_that_differ_have_no_mean(bench) -> None:
    lab = bench(bert)
    first, second = heads(lab)
    wider = load_file(Path(second) / "adapter_model.safetensors")
    wider["base_model.model.classifier.weight"] = torch.zeros(5, 16)
    save_file(wider, Path(second) / "adapter_model.safetensors")
    with pytest.raises(samerge.AdapterError, match=r"'classifier.weight': its shapes differ.*take:<adapter>"):
        lab.merge(first, second, modules_to_save="average")
    with pytest.raises(samerge.BaseModelError, match=r"'second' has it as \(5, 16\), the base as \(3, 16\)"):
        lab.merge(first, second, modules_to_save="update")


def test_a_vocabulary_that_the_base_has_not_got(bench) -> None:
    """Of an adapter whose base was resized: its head and rows fit no other, and the report says so."""
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], modules_to_save=["lm_head"], trainable_token_indices=[3, 5])
    file = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: torch.cat([t, t[:2]]) if "lm_head" in key else t for key, t in tensors.items()}, file)
    merged = lab.merge(lab.altered(folder, trainable_token_indices=[3, 33]), modules_to_save="average")
    [told] = [line for line in merged.report.warnings if "resize_token_embeddings" in line]
    assert "lm_head.weight is (34, 16), the base's (32, 16)" in told
    assert "row 33 of model.embed_tokens.weight is trained, the base has 32" in told
    save_file(tensors, file)
    merged = lab.merge(folder, modules_to_save="average")
    assert not [line for line in merged.report.warnings if "resize_token_embeddings" in line]


def test_a_module_beside_the_model_is_left_out_by_name(bench) -> None:
    """A value head in the adapter's file, which its configuration does not speak of."""
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    save_file({**load_file(file), "v_head.summary.weight": torch.ones(1, 16)}, file)
    with pytest.raises(
        samerge.BaseModelError, match=r"'v_head.summary.weight'.*under modules_to_save in adapter_config"
    ):
        lab.merge(folder)
    merged = lab.merge(lab.altered(folder, modules_to_save=["v_head"]), modules_to_save="drop")
    assert not merged.extras
    assert any("dropped" in line and "v_head.summary.weight" in line for line in merged.report.warnings)


@pytest.mark.parametrize("choice", ["average", "update"])
def test_a_word_that_means_more_modules_than_are_left_is_written_out(bench, choice: str) -> None:
    """PEFT wraps every module that ends with an entry, and does not load a file that lacks one of them."""
    lab = bench(llama)
    folder = lab.train("a", change_saved(1), target_modules=["q_proj"], modules_to_save=["layernorm", "model.norm"])
    merged = lab.merge(folder, modules_to_save=choice, modules={"*.layers.0.*": 0})
    names = [f"model.layers.1.{kind}_layernorm" for kind in ("input", "post_attention")]
    assert merged.settings["modules_to_save"] == [*names, "model.norm"]
    model = lab.reloaded(merged)
    trained = saved(folder)
    for name, parameter in model.get_base_model().named_parameters():
        if "modules_to_save" in name:
            module = name.partition(".modules_to_save")[0]
            torch.testing.assert_close(parameter.data, trained[f"base_model.model.{module}.weight"])
    assert lab.merge(folder, modules_to_save=choice).settings["modules_to_save"] == ["layernorm", "model.norm"]
