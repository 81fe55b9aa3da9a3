"""The suites of real tasks: what reads files, splits rows and decides on answers, without a download."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from suites import dinov2, images, smollm2, texts
from suites.base import DTYPE_VARIABLE, LiveWeights, Update, computing_dtype, precision_of
from suites.training import shuffled, train_lora
from suites.vision import SIDE, Head, first_of_each, prepared
from transformers import LlamaConfig, LlamaForCausalLM

from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors

# PEFT asks a transformers model for a property that newer releases of transformers call by another name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


class Letters:
    """A tokenizer: a word is a token for each of its letters, spaces are none."""

    def __call__(self, strings, add_special_tokens):
        many = [strings] if isinstance(strings, str) else strings
        numbers = [[ord(letter) for letter in string if not letter.isspace()] for string in many]
        return {"input_ids": numbers[0] if isinstance(strings, str) else numbers}


def pictures(count: int, side: int = 4, seed: int = 0) -> images.Pictures:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return images.Pictures(pixels, torch.arange(count) % 3)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes)).eval()


@pytest.mark.parametrize("task", smollm2.PROMPTS)
def test_every_class_has_a_word_of_its_own(task):
    words = smollm2.PROMPTS[task].words
    assert list(words) == list(texts.TASKS[task].labels)
    assert len({word.split()[0] for word in words.values()}) == len(words)
    assert all(word.startswith(" ") for word in words.values())


def test_words_that_begin_alike_are_refused():
    prompt = smollm2.Prompt("Q", "A", {"a": " cat", "b": " cow", "c": " dog"})
    with pytest.raises(ValueError, match="first token"):
        smollm2.first_tokens(Letters(), prompt, ["a", "b", "c"])
    assert smollm2.first_tokens(Letters(), prompt, ["c", "a"]).tolist() == [ord("d"), ord("c")]


def test_a_prompt_keeps_its_cue_however_long_the_text():
    prompt = smollm2.Prompt("Q: ", "\nA:", {})
    short, long = smollm2.encode(Letters(), prompt, ["a b", "x" * 10_000])
    assert "".join(map(chr, short)) == "Q:abA:"
    assert "".join(map(chr, long)) == "Q:" + "x" * smollm2.TOKENS + "A:"


def test_answers_are_the_head_at_each_rows_last_token():
    model = llama()
    rows = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    words = torch.tensor([3, 90, 41])
    with torch.no_grad():
        found = smollm2.answers(model, *smollm2.padded(rows), words)
        alone = [model(input_ids=torch.tensor([row])).logits[0, -1, words] for row in rows]
    torch.testing.assert_close(found, torch.stack(alone))


def test_training_learns_and_names_its_base(tmp_path):
    model = llama()
    ids, last = smollm2.padded([[5, 6], [7, 8, 9]])
    losses = []

    def loss(step):
        scores = smollm2.answers(model, ids, last, torch.tensor([3, 90]))
        value = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]))
        losses.append(value.item())
        return value

    said: list[str] = []
    how = {"targets": ["q_proj", "down_proj"], "seed": 1, "rank": 2, "alpha": 4, "report": said.append}
    train_lora(model, loss, tmp_path / "own", name="Tiny", steps=25, rate=5e-2, **how)
    assert losses[-1] < 0.8 * losses[0]
    assert len(said) == 1
    assert json.loads((tmp_path / "own/adapter_config.json").read_text())["base_model_name_or_path"] == "Tiny"


def test_a_pass_shows_every_item_once():
    batches = shuffled(range(6), 2, seed=0)
    first, second = ([item for _ in range(3) for item in next(batches)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_idx_files():
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    found = images.from_idx(
        struct.pack(">iiii", 0x803, 2, 3, 4) + pixels.tobytes(), struct.pack(">ii", 0x801, 2) + bytes([7, 9])
    )
    assert found.classes.tolist() == [7, 9]
    assert found.pixels.shape == (2, 3, 3, 4)
    for channel in range(3):
        assert np.array_equal(found.pixels[:, channel].numpy(), pixels)


def test_pictures_of_cifar_are_rows_of_a_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels.reshape(5, 1024, 3)).save(tmp_path / "batch.png")
    (tmp_path / "labels.json").write_text("[8, 8, 0, 1, 2, 3, 4]")
    found = images._cifar(tmp_path, "batch", "labels.json", 2)
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), pixels)
    assert found.classes.tolist() == [0, 1, 2, 3, 4]


def test_a_turned_picture_comes_back_when_turned_on():
    before = pictures(8)
    after = images.turned(before)
    assert after.classes.tolist() == [0, 1, 2, 3] * 2
    for old, new, quarters in zip(before.pixels, after.pixels, after.classes.tolist(), strict=True):
        for _ in range(4 - quarters):
            new = torch.stack([torch.from_numpy(np.rot90(channel.numpy()).copy()) for channel in new])
        assert torch.equal(new, old)


def test_no_picture_is_trained_on_and_held_out():
    some, more = pictures(6), pictures(9, seed=1)
    both = images.Pictures(torch.cat([more.pixels, some.pixels[:4]]), torch.cat([more.classes, some.classes[:4]]))
    twice = some.take([0, 1, 2, 3, 4, 5, 5])
    train, held_out = images.ImageTask(3, lambda cache: (twice, both), "").pictures(Path())
    assert torch.equal(train.pixels, some.pixels)
    assert torch.equal(held_out.pixels, more.pixels)
    assert torch.equal(held_out.classes, more.classes)


def test_dividing_is_a_partition_and_always_the_same():
    whole = pictures(20)
    train, held_out = images.divided(whole)
    parts = [tuple(p.flatten().tolist()) for part in (train, held_out) for p in part.pixels]
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted(parts) == sorted(tuple(p.flatten().tolist()) for p in whole.pixels)
    assert torch.equal(images.divided(whole)[1].pixels, held_out.pixels)


def test_the_head_is_the_nearest_class_mean_by_cosine():
    generator = torch.Generator().manual_seed(0)
    features, classes = torch.randn(12, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 0, 1, 0, 0])
    found = Head.of(features, classes).scores(features)
    means = [sum(f for f, c in zip(features, classes, strict=True) if c == n) / (classes == n).sum() for n in range(3)]
    origin = sum(means) / 3
    for i in range(12):
        for n in range(3):
            x, y = features[i] - origin, means[n] - origin
            assert found[i, n].item() == pytest.approx((x @ y / (x.norm() * y.norm())).item(), abs=1e-6)


def test_first_pictures_of_each_class():
    assert first_of_each([2, 0, 2, 2, 0, 1, 0], 2) == [0, 1, 2, 4, 5]


def test_a_prepared_picture_has_the_models_size_and_range():
    flat = prepared(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))
    assert flat.shape == (2, 3, SIDE, SIDE)
    for channel in range(3):
        white = (1 - dinov2.MEAN[channel]) / dinov2.STD[channel]
        torch.testing.assert_close(flat[:, channel], torch.full((2, SIDE, SIDE), white))


def test_linear_weights_are_found_through_their_biases():
    def node(kind, inputs, output):
        return SimpleNamespace(op_type=kind, input=inputs, output=[output])

    nodes = [
        node("MatMul", ["x", "onnx::MatMul_1"], "xw"),
        node("Add", ["backbone.fc1.bias", "xw"], "y"),
        node("MatMul", ["y", "y"], "yy"),  # attention: no constant
        node("Add", ["yy", "backbone.norm.bias"], "z"),
        node("MatMul", ["z", "onnx::MatMul_2"], "zw"),
        node("Add", ["zw", "backbone.fc2.bias"], "u"),
    ]
    constants = {
        "onnx::MatMul_1": torch.randn(2, 3),
        "onnx::MatMul_2": torch.randn(3, 2),
        "onnx::Concat_3": torch.randn(1, 1, dinov2.WIDTH),
        "onnx::Reshape_4": torch.randn(1, dinov2.SIDE**2, dinov2.WIDTH),
        "backbone.fc1.bias": torch.randn(3),
        "backbone.fc2.bias": torch.randn(2),
        "backbone.norm.bias": torch.randn(3),
        "decoder.conv.bias": torch.randn(1),
    }
    names = dinov2.linear_names(nodes, constants)
    assert names == {"backbone.fc1.weight": "onnx::MatMul_1", "backbone.fc2.weight": "onnx::MatMul_2"}
    tensors = dinov2.state_dict(constants, names)
    positions = "embeddings.position_embeddings"
    assert set(tensors) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "norm.bias", positions}
    assert torch.equal(tensors["fc2.weight"], constants["onnx::MatMul_2"].T)
    assert torch.equal(tensors[positions][0, 1:], constants["onnx::Reshape_4"][0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, torch.bfloat16), ("", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)],
)
def test_what_evaluators_compute_in(monkeypatch, given, expected):
    monkeypatch.delenv(DTYPE_VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(DTYPE_VARIABLE, given)
    assert computing_dtype() == expected
    assert precision_of(expected).startswith(f"{given or 'bfloat16'} weights")


def test_another_dtype_is_refused(monkeypatch):
    monkeypatch.setenv(DTYPE_VARIABLE, "float16")
    with pytest.raises(ValueError, match="SAMERGE_BENCHMARKS_DTYPE='float16' must be bfloat16 or float32"):
        computing_dtype()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_updates_are_added_to_the_weights_before_they_were_rounded(dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    exact = model[0].weight.detach().clone()
    factors = LoraFactors(torch.randn(2, 6), torch.randn(5, 2))
    live = LiveWeights.rounded(model, dtype)
    live.put(Update({"0": factors}, {"0": Layout("linear")}))
    assert torch.equal(model[0].weight, (exact + factors.B @ factors.A).to(dtype))
    live.put(None)
    assert torch.equal(model[0].weight, exact.to(dtype))
