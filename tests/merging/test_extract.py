"""`extract_adapter`: full fine-tunings as adapters, against the dense SVD and against the fine-tuned model itself."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from alike import same_merge
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import Beast, write_base

import samerge

_EMBEDDED = ("embed", "wte", "wpe", "shared", "relative", "cls_token", "lm_head")


def finetuned(model: torch.nn.Module, which=lambda name, p: p.ndim == 2, seed: int = 1) -> torch.nn.Module:
    """A copy with noise on the linear weights, or on the parameters that `which` names."""
    generator = torch.Generator().manual_seed(seed)
    expert = copy.deepcopy(model)
    for name, p in expert.named_parameters():
        if which(name, p) and not any(part in name for part in _EMBEDDED):
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return expert


@pytest.mark.parametrize("live", [False, True])
def test_the_whole_difference_is_the_fine_tuned_model(beast: Beast, live, tmp_path):
    base = beast.model()
    expert = finetuned(base)
    expert.save_pretrained(tmp_path / "expert")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    one = samerge.extract_adapter(*((base, expert) if live else (beast.folder, tmp_path / "expert")), rank=64)
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    assert not one.report.warnings
    model = PeftModel.from_pretrained(beast.model(), one.save(tmp_path / "out")).eval()
    torch.testing.assert_close(beast.logits(model), beast.logits(expert), rtol=1e-4, atol=1e-4)
    assert (beast.logits(base) - beast.logits(expert)).abs().max() > 0.1


@pytest.mark.parametrize("size", [{"rank": 3}, {"energy": 0.8}, {"rank": 6, "energy": 0.9}])
def test_the_best_approximation(llama: Beast, size):
    base = llama.model()
    expert = finetuned(base)
    one = samerge.extract_adapter(base, expert, **size)
    ranks = set()
    for module in one.factors:
        delta = (expert.get_submodule(module).weight - base.get_submodule(module).weight).detach().double()
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        layer = one.report.record.layers[module]
        rank = layer.rank
        shares = s.square().cumsum(0) / s.square().sum()
        wanted = int((shares < size.get("energy", 1.0)).sum()) + 1
        assert rank == min(size.get("rank", 99), wanted)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(one.delta(module).double(), best, rtol=0, atol=1e-6 * float(s[0]))
        assert layer.lost == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), abs=1e-6)
        assert layer.adapters[one.report.record.inputs[0].name].norm == pytest.approx(float(delta.norm()))
        ranks.add(rank)
    assert one.settings["r"] == max(ranks)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Matrices too large to be decomposed whole, with a decaying difference."""
    folder = tmp_path_factory.mktemp("wide")
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(200, 160, generator=generator) for i in range(2)}
    deltas = {}
    for i, power in enumerate((1.0, 0.1)):
        u, _, vh = torch.linalg.svd(torch.randn(200, 160, generator=generator), full_matrices=False)
        deltas[f"layers.{i}"] = (u * torch.arange(1, 161) ** -power) @ vh
    expert = {name: weight + deltas[name[:-7]] for name, weight in base.items()}
    return write_base(folder / "base", base), write_base(folder / "expert", expert), deltas


def test_large_matrices_are_within_a_percent_of_the_best(wide):
    base, expert, deltas = wide
    one = samerge.extract_adapter(base, expert, rank=8)
    for module, delta in deltas.items():
        best = float(torch.linalg.svdvals(delta)[8:].square().sum().sqrt())
        assert float((delta - one.delta(module)).norm()) < 1.01 * best


def test_energy_looks_further_until_it_is_there(wide):
    base, expert, deltas = wide
    one = samerge.extract_adapter(base, expert, energy=0.75)
    for module, delta in deltas.items():
        squares = torch.linalg.svdvals(delta.double()).square()
        least = int((squares.cumsum(0) / squares.sum() < 0.75).sum()) + 1
        layer = one.report.record.layers[module]
        assert least <= layer.rank <= 1.1 * least
        assert layer.lost <= 0.25
    assert one.report.record.layers["layers.1"].rank > 64


def test_the_same_every_time(wide):
    base, expert, _ = wide
    same_merge(*(samerge.extract_adapter(base, expert, rank=4) for _ in range(2)))


def test_what_is_left_out_is_never_silent(bert: Beast, tmp_path):
    """Norms, biases and embeddings: named in a warning with their relative change, all of them in the record."""
    base = bert.model()
    expert = finetuned(base, lambda name, p: True)
    expert.bert.embeddings.word_embeddings.weight.data.mul_(1.25)
    with pytest.warns(UserWarning, match="changed, but not in the adapter") as caught:
        one = samerge.extract_adapter(base, expert, rank=4)
    said = str(caught[0].message)
    assert "bert.encoder.layer.*.attention.output.LayerNorm.weight (2 x, by up to " in said
    assert "bert.embeddings.word_embeddings.weight (by 0.25 of its norm)" in said
    assert one.report.warnings[-1] == said
    left = one.report.record.left_out
    assert left["bert.embeddings.word_embeddings.weight"] == pytest.approx(0.25, rel=1e-5)
    taken = {f"{module}.weight" for module in one.factors}
    changed = {
        name for (name, p), q in zip(base.named_parameters(), expert.parameters(), strict=True) if (p != q).any()
    }
    assert set(left) == changed - taken
    assert "bert.encoder.layer.0.attention.self.query.bias" in left
    assert one.save(tmp_path / "out").is_dir()


def test_embeddings_by_choice(llama: Beast, tmp_path):
    base = llama.model()
    expert = finetuned(base)
    expert.model.embed_tokens.weight.data.mul_(1.5)
    with pytest.warns(UserWarning, match="embed_tokens"):
        samerge.extract_adapter(base, expert, rank=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = samerge.extract_adapter(base, expert, rank=64, embeddings=True)
    model = PeftModel.from_pretrained(llama.model(), one.save(tmp_path / "out")).eval()
    torch.testing.assert_close(llama.logits(model), llama.logits(expert), rtol=1e-3, atol=1e-3)


def test_experts_of_a_mixture(tmp_path):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **{"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "vocab_size": 40, "num_local_experts": 3, "initializer_range": 0.3},
    )
    base = transformers.MixtralForCausalLM(config).eval()
    expert = finetuned(base, lambda name, p: "experts" in name or "self_attn" in name or "mlp.gate.weight" in name)
    with pytest.warns(UserWarning, match=r"mlp\.gate\.weight"):  # PEFT cannot adapt a router
        one = samerge.extract_adapter(base, expert, rank=64)
    expert.model.layers[0].mlp.gate.weight.data = base.model.layers[0].mlp.gate.weight.data
    model = PeftModel.from_pretrained(copy.deepcopy(base), one.save(tmp_path / "out")).eval()
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, expert(input_ids=ids).logits, rtol=1e-3, atol=1e-3)


def test_another_head_and_a_resized_vocabulary_are_told(bert: Beast, tmp_path):
    """A base without the expert's head, under names without its prefix; a larger vocabulary."""
    bert.model().bert.save_pretrained(tmp_path / "base")
    expert = finetuned(bert.model())
    expert.resize_token_embeddings(48, mean_resizing=False)
    expert.save_pretrained(tmp_path / "expert")
    with pytest.warns(UserWarning, match="not compared, and not in the adapter") as caught:
        one = samerge.extract_adapter(tmp_path / "base", tmp_path / "expert", rank=2)
    said = str(caught[-1].message)
    assert "classifier.weight (not in the base)" in said
    assert "word_embeddings.weight ((40, 32) in the base, (48, 32) in the expert)" in said
    assert "encoder.layer.0.attention.self.query" in one.factors


def test_nothing_to_extract(llama: Beast):
    with pytest.raises(samerge.BaseModelError, match="no linear weight differs from the base"):
        samerge.extract_adapter(llama.folder, llama.folder, rank=2)
    with pytest.raises(samerge.OptionError, match="extracting an adapter needs a size"):
        samerge.extract_adapter(llama.folder, llama.folder)


def test_a_diverged_expert(llama: Beast, tmp_path):
    llama.model().save_pretrained(tmp_path / "expert")
    file = tmp_path / "expert" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(samerge.BaseModelError, match=r"comparing 'expert' .*up_proj\.weight' holds NaN"):
        samerge.extract_adapter(llama.folder, tmp_path / "expert", rank=2)


def test_the_dtype_is_the_experts(llama: Beast, tmp_path):
    finetuned(llama.model()).to(torch.bfloat16).save_pretrained(tmp_path / "expert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rounding changes norms, too
        one = samerge.extract_adapter(llama.folder, tmp_path / "expert", rank=2)
        other = samerge.extract_adapter(llama.folder, tmp_path / "expert", rank=2, dtype="float16")
    assert {factors.A.dtype for factors in one.factors.values()} == {torch.bfloat16}
    assert {factors.A.dtype for factors in other.factors.values()} == {torch.float16}
