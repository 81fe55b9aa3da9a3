"""DoRA: refused, or converted on request with what that loses in the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import samerge
import samerge.linalg.randomised_svd
from pitfalls.lab import EXACT_LIVE, Convolutions, close, gpt2, llama, output, quiet
from samerge.errors import AdapterError

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "rsLoRA and patterns": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 5}},
    ),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolutions": (Convolutions, {"target_modules": ["one", "two", "three"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_the_conversion_is_the_adapter(bench, kind: str) -> None:
    factory, settings = KINDS[kind]
    lab = bench(factory)
    folder = lab.train("a", use_dora=True, **settings)
    expected = output(lab.with_adapters(folder))
    options = {"connectivity": "local"} if kind == "convolutions" else {}
    merged = lab.merge(folder, dora="exact:64", **options)
    with quiet():
        close(output(lab.reloaded(merged)), expected, tolerance=1e-4)
    lost = [layer.adapters["first"].dora_lost for layer in merged.report.record.layers.values()]
    assert max(lost) < 1e-5
    assert not merged.settings["use_dora"]


def test_without_its_magnitudes_it_is_broken_and_no_plain_lora(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], use_dora=True)
    file = f"{folder}/adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.1" not in k or "magnitude" not in k}, file)
    for dora in (None, "exact"):
        with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.q_proj.*no lora_magnitude_vector"):
            lab.merge(folder, dora=dora)


def test_live_and_beside_a_plain_adapter(bench) -> None:
    lab = bench(llama)
    first = lab.train("a", target_modules=["q_proj"], use_dora=True)
    second = lab.train("b", target_modules=["q_proj", "v_proj"])
    model = lab.with_adapters(first, second)
    with quiet():
        merged = samerge.add_weighted_adapter(model, ["first", "second"], None, "merged", dora="exact:16", **EXACT_LIVE)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    dora = lab.with_adapters(first).merge_and_unload().model.layers[0].self_attn.q_proj.weight
    expected = dora - layer.base_layer.weight + layer.get_delta_weight("second")
    close(merged.delta("model.layers.0.self_attn.q_proj"), expected.detach())


def test_truncated_to_the_adapters_rank_it_is_the_best_of_that_rank_and_says_what_it_lost(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], use_dora=True)
    merged = lab.merge(folder, dora="exact")
    name = "model.layers.0.self_attn.q_proj"
    base = lab.model.model.layers[0].self_attn.q_proj.weight.detach()
    exact = lab.with_adapters(folder).merge_and_unload().model.layers[0].self_attn.q_proj.weight.detach() - base
    values = torch.linalg.svdvals(exact).square()
    layer = merged.report.record.layers[name]
    assert merged.settings["r"] == 2
    assert layer.adapters["first"].dora_lost == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-3)
    assert float((merged.delta(name) - exact).square().sum() / exact.square().sum()) == pytest.approx(
        layer.adapters["first"].dora_lost, rel=1e-3
    )
    [warning] = [text for text in merged.report.warnings if "DoRA" in text]
    assert "that is much" in warning
    assert "dora='exact:<rank>' keeps more" in warning


def test_the_base_is_read_some_rows_at_a_time(bench, monkeypatch) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["down_proj"], use_dora=True)
    whole = lab.merge(folder, dora="exact:16")
    monkeypatch.setattr(samerge.linalg.randomised_svd, "TILE_ELEMENTS", 5 * 24)
    state = torch.get_rng_state()
    tiled = lab.merge(folder, dora="exact:16")
    assert torch.equal(state, torch.get_rng_state())
    for name in whole.factors:
        close(tiled.delta(name), whole.delta(name))


def test_rows_of_nothing_stay_nothing(bench) -> None:
    """A row of the base that is zero, and stays so, has no direction for the magnitude to scale."""
    lab = bench(llama)
    with torch.no_grad():
        lab.model.model.layers[0].self_attn.q_proj.weight[3].zero_()

    def nothing(model) -> None:
        for name, parameter in model.named_parameters():
            if "layers.0" in name and "lora_B" in name:
                parameter.data[3].zero_()

    merged = lab.merge(lab.train("a", nothing, target_modules=["q_proj"], use_dora=True), dora="exact:16")
    delta = merged.delta("model.layers.0.self_attn.q_proj")
    assert torch.isfinite(delta).all()
    assert float(delta[3].abs().max()) < 1e-6
    assert delta[2].any()


def test_it_is_refused_without_a_word_of_the_user(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(samerge.AdapterError, match=r"'first': it is a DoRA adapter.*dora='exact'"):
        lab.merge(folder)
    model = lab.with_adapters(folder)
    with pytest.raises(samerge.AdapterError, match="it is a DoRA adapter"):
        samerge.add_weighted_adapter(model, ["first"], combination_type="paper")
    assert list(model.peft_config) == ["first"]


def test_without_a_base_there_is_nothing_to_rescale(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(samerge.AdapterError, match="give base="):
        samerge.merge(None, [folder], method="linear", dora="exact")


@pytest.mark.parametrize("choice", ["yes", "exact:", "exact:0", "exact:x"])
def test_choices_that_mean_nothing(bench, choice: str) -> None:
    lab = bench(llama)
    with pytest.raises(samerge.OptionError, match=r"choose one of exact, exact:RANK"):
        lab.merge(lab.train("a", target_modules=["q_proj"]), dora=choice)


def test_a_magnitude_of_the_wrong_length(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], use_dora=True)
    file = f"{folder}/adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(5)
    save_file(tensors, file)
    with pytest.raises(samerge.AdapterError, match="has 5 entries for 16 rows"):
        lab.merge(folder, dora="exact")
