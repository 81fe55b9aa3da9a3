"""One spelling in a file: whatever names the adapters have, PEFT loads the whole merge onto the model in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft_faults import takes_layer_0
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

import samerge
from pitfalls.lab import Bench, bert, close, llama, quiet, randomise

_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SIZES, "vocab_size": 40, "num_key_value_heads": 2, "initializer_range": 0.3}
_GEMMA = {**_TEXT, "head_dim": 4, "pad_token_id": 0}
_VISION = {**_SIZES, "image_size": 8, "patch_size": 4}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}
_LANGUAGE = (("model.language_model.", "language_model.model."), ("lm_head", "language_model.lm_head"))
_TOWER = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
EXACT: dict[str, Any] = {"method": "linear", "progress": False}

#: A vision-language model -> how to make one, and how its names begin today and began under transformers 4.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[str, str], ...]]] = {
    "llava": (
        lambda: LlavaForConditionalGeneration(
            LlavaConfig(
                text_config=LlamaConfig(**_TEXT), vision_config=CLIPVisionConfig(**_VISION), image_token_index=39
            )
        ),
        (*_LANGUAGE, *_TOWER),
    ),
    "paligemma": (
        lambda: PaliGemmaForConditionalGeneration(
            PaliGemmaConfig(
                text_config=GemmaConfig(**_GEMMA).to_dict(),
                vision_config=SiglipVisionConfig(**_VISION).to_dict(),
                image_token_index=39,
                projection_dim=16,
            )
        ),
        (*_LANGUAGE, *_TOWER),
    ),
    "gemma3": (
        lambda: Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=Gemma3TextConfig(**_GEMMA).to_dict(),
                vision_config=SiglipVisionConfig(**_VISION).to_dict(),
                image_token_index=39,
                mm_tokens_per_image=4,
            )
        ),
        (*_LANGUAGE, *_TOWER),
    ),
    "mllama": (
        lambda: MllamaForConditionalGeneration(
            MllamaConfig(
                text_config=MllamaTextConfig(**_TEXT, cross_attention_layers=[1], pad_token_id=0).to_dict(),
                vision_config=MllamaVisionConfig(
                    hidden_size=16,
                    intermediate_size=24,
                    attention_heads=4,
                    num_hidden_layers=2,
                    num_global_layers=1,
                    image_size=8,
                    patch_size=4,
                    vision_output_dim=32,
                    intermediate_layers_indices=[0],
                ).to_dict(),
                image_token_index=39,
            )
        ),
        (*_LANGUAGE, ("model.vision_model.", "vision_model.")),
    ),
    "qwen2_vl": (
        lambda: Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(
                text_config={
                    **_TEXT,
                    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4},
                },
                vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 4, "patch_size": 4},
                image_token_id=39,
            )
        ),
        (("model.language_model.", "model."), ("model.visual.", "visual.")),
    ),
}

#: Those whose adapters of transformers 4 PEFT itself loads without their weights; with the base they are translated.
UNREAD = {"qwen2_vl"}

#: Of the kind that training tools write for "the language model, not the vision tower".
LANGUAGE = r"^(?!.*(?:vision|visual|multi_modal_projector)).*(?:q_proj|v_proj|o_proj|down_proj)$"
MORE = r"^(?!.*(?:vision|visual|multi_modal_projector)).*(?:v_proj|up_proj)$"


def renamed(folder: str, change: Callable[[str], str], out: str) -> str:
    """A copy of an adapter whose keys are named otherwise; `change` gets them without PEFT's prefix."""
    import shutil

    copied = str(Path(folder).with_name(out))
    shutil.copytree(folder, copied)
    file = Path(copied) / "adapter_model.safetensors"
    prefix = "base_model.model."
    save_file({prefix + change(key.removeprefix(prefix)): t for key, t in load_file(file).items()}, file)
    return copied


def begins(pairs: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    def change(name: str) -> str:
        for new, old in pairs:
            if name.startswith(new):
                return old + name.removeprefix(new)
        return name

    return change


def said(model: nn.Module) -> Tensor:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = torch.tensor([[5, 6, 7, 8, 2]])
    extra = {}
    if isinstance(inner, LlavaForConditionalGeneration):
        ids = torch.cat([torch.full((1, 4), 39), ids], dim=1)
        extra["pixel_values"] = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), quiet():
        found = model(input_ids=ids, **extra)
    return (found.last_hidden_state if "last_hidden_state" in found else found.logits).float()


def assert_whole(lab: Bench, merged: samerge.MergedAdapter, expected: Tensor, onto: nn.Module | None = None) -> None:
    """Saved and loaded by PEFT on a fresh model, nothing is left out and the outputs are the truth."""
    folder = merged.save(lab.folder / "out", overwrite=True)
    with quiet():
        model = PeftModel.from_pretrained(onto if onto is not None else lab.fresh(), str(folder)).eval()
    in_file = load_file(folder / "adapter_model.safetensors")
    loaded = dict(model.named_parameters())
    for key, tensor in in_file.items():
        name = re.sub(r"(lora_[AB])", r"\1.default", key)
        if name in loaded:
            close(loaded[name].float(), tensor.float())
    alive = sum(bool(p.abs().sum()) for name, p in loaded.items() if "lora_B" in name)
    assert alive == sum(bool(t.abs().sum()) for key, t in in_file.items() if "lora_B" in key)
    close(said(model), expected)
    assert not torch.allclose(said(lab.fresh() if onto is None else model.get_base_model()), expected) or onto


@pytest.mark.filterwarnings("ignore:by name these adapters")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelled", [("old", "old"), ("old", "new"), ("new", "old")], ids="-".join)
def test_vision_language_models_of_transformers_4(bench, family: str, spelled: tuple[str, str]) -> None:
    make, pairs = FAMILIES[family]
    lab = bench(make)
    new = [lab.train(name, target_modules=targets) for name, targets in (("a", LANGUAGE), ("b", MORE))]
    expected = said(lab.with_adapters(*new))
    given = [
        renamed(folder, begins(pairs), f"{Path(folder).name}-old") if which == "old" else folder
        for folder, which in zip(new, spelled, strict=True)
    ]
    if family not in UNREAD:
        close(said(lab.with_adapters(*given)), expected)  # PEFT takes every source
    with_base = samerge.merge(lab.base, given, **EXACT)
    assert not [name for name in with_base.factors if not name.startswith("model.language_model.")]
    assert_whole(lab, with_base, expected)
    assert_whole(lab, samerge.merge(lab.model, given, **EXACT), expected)
    if family not in UNREAD:
        assert_whole(lab, samerge.merge(None, given, **EXACT), expected)
        model = lab.with_adapters(*given)
        samerge.add_weighted_adapter(model, ["first", "second"], None, "merged", "linear", progress=False)
        model.set_adapter("merged")
        close(said(model), expected)
    default = samerge.merge(lab.base, given, progress=False)
    assert set(default.factors) >= set(with_base.factors)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_adapter_compressed(bench, family: str) -> None:
    make, pairs = FAMILIES[family]
    lab = bench(make)
    folder = lab.train("a", target_modules=LANGUAGE)
    old = renamed(folder, begins(pairs), "a-old")
    expected = said(lab.with_adapters(folder))
    if family not in UNREAD:
        assert_whole(lab, samerge.compress_adapter(old, rank=2, progress=False), expected)
    assert_whole(lab, samerge.compress_adapter(old, base=lab.base, rank=2, progress=False), expected)


@pytest.mark.filterwarnings("ignore:by name these adapters")
def test_an_old_and_a_new_adapter_of_the_vision_tower(bench) -> None:
    make, pairs = FAMILIES["llava"]
    lab = bench(make)
    targets = r".*(vision_tower|language_model).*(q_proj|fc1)"
    new = [lab.train(name, target_modules=targets) for name in ("a", "b")]
    old = renamed(new[0], begins(pairs), "a-old")
    expected = said(lab.with_adapters(*new))
    assert_whole(lab, samerge.merge(lab.base, [old, new[1]], **EXACT), expected)
    assert_whole(lab, samerge.merge(lab.base, [new[1], old], **EXACT), expected)
    with pytest.raises(samerge.BaseModelError, match="in doubt which are the same; give base="):
        samerge.merge(None, [old, new[1]], **EXACT)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["encoder first", "classifier first"])
def test_an_encoder_and_a_classifier(tmp_path: Path, order: tuple[int, int]) -> None:
    """`BertModel` has no `bert.` in its names; the first adapter says which model it is merged for."""
    torch.manual_seed(0)
    base = str(tmp_path / "bert")
    config = BertConfig(**_SIZES, vocab_size=40, initializer_range=0.3)
    BertForMaskedLM(config).save_pretrained(base)
    torch.manual_seed(1)
    encoder = BertModel.from_pretrained(base).eval()
    classifier = BertForSequenceClassification.from_pretrained(base).eval()
    kinds = ((encoder, ["query", "value"], "FEATURE_EXTRACTION"), (classifier, ["key", "value"], None))
    folders = []
    for number, (model, targets, task) in enumerate(kinds):
        with quiet():
            tuned = get_peft_model(_copy(model), LoraConfig(r=2, target_modules=targets, task_type=task))
            randomise(tuned, number + 1)
            tuned.save_pretrained(tmp_path / f"{number}")
        folders.append(str(tmp_path / f"{number}"))
    alike = [
        [folders[0], renamed(folders[1], lambda name: name.removeprefix("bert."), "1-bare")],
        [renamed(folders[0], lambda name: f"bert.{name}", "0-headed"), folders[1]],
    ][order[0]]
    onto = (encoder, classifier)[order[0]]
    with quiet():
        both = PeftModel.from_pretrained(_copy(onto), alike[0], adapter_name="a")
        both.load_adapter(alike[1], adapter_name="b")
        both.base_model.set_adapter(["a", "b"])
    expected = said(both.eval())
    given = [folders[n] for n in order]
    for source in (base, None):
        merged = samerge.merge(source, given, **EXACT)
        assert any("named" in text or "name" in text for text in [*merged.report.notes, *merged.report.warnings])
        folder = merged.save(tmp_path / "out", overwrite=True)
        with quiet():
            close(said(PeftModel.from_pretrained(_copy(onto), str(folder)).eval()), expected)


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def test_adapters_of_the_encoder_alone_keep_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = str(tmp_path / "bert")
    BertForMaskedLM(BertConfig(**_SIZES, vocab_size=40)).save_pretrained(base)
    encoder = BertModel.from_pretrained(base).eval()
    with quiet():
        tuned = get_peft_model(_copy(encoder), LoraConfig(r=2, target_modules=["query"]))
        randomise(tuned, 1)
        tuned.save_pretrained(tmp_path / "a")
    merged = samerge.merge(base, [str(tmp_path / "a")], **EXACT)
    assert min(merged.factors) == "encoder.layer.0.attention.self.query"
    with quiet():
        loaded = PeftModel.from_pretrained(_copy(encoder), str(merged.save(tmp_path / "out"))).eval()
    close(said(loaded), said(tuned.eval()))


def test_adapters_with_a_head_on_a_base_without(tmp_path: Path) -> None:
    """Sentence encoders are saved as `BertModel`; a classifier puts `bert.` before every name."""
    torch.manual_seed(0)
    base = str(tmp_path / "bert")
    BertModel(BertConfig(**_SIZES, vocab_size=40, initializer_range=0.3)).save_pretrained(base)
    model = BertForSequenceClassification.from_pretrained(base).eval()
    with quiet():
        tuned = get_peft_model(_copy(model), LoraConfig(r=2, target_modules=["query"]))
        randomise(tuned, 1)
        tuned.save_pretrained(tmp_path / "a")
    merged = samerge.merge(base, [str(tmp_path / "a")], **EXACT)
    assert min(merged.factors) == "bert.encoder.layer.0.attention.self.query"
    with quiet():
        loaded = PeftModel.from_pretrained(_copy(model), str(merged.save(tmp_path / "out"))).eval()
    close(said(loaded), said(tuned.eval()))


PREFIXES = ("thinker.", "policy.", "pretrained_model.", "0.auto_model.", "base_model.model.", "module.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapped", [(True, False), (False, True), (True, True)], ids=["first", "second", "both"])
def test_wrappers_around_the_model(bench, prefix: str, wrapped: tuple[bool, bool]) -> None:
    lab = bench(llama)
    plain = [lab.train("a", target_modules=["q_proj", "v_proj"]), lab.train("b", target_modules=["v_proj", "o_proj"])]
    given = [
        renamed(folder, lambda name: prefix + name, f"{Path(folder).name}-in") if inside else folder
        for folder, inside in zip(plain, wrapped, strict=True)
    ]
    expected = said(lab.with_adapters(*plain))
    assert_whole(lab, samerge.merge(lab.base, given, **EXACT), expected)
    assert_whole(lab, samerge.merge(lab.model, given, **EXACT), expected)
    bare = samerge.merge(None, given, **EXACT)
    if wrapped[0] and prefix != "base_model.model.":  # the first adapter's names stand
        assert all(name.startswith(prefix) for name in bare.factors)
        saved = str(bare.save(lab.folder / "bare"))
        assert_whole(lab, samerge.merge(lab.base, [saved], **EXACT), expected)
    else:
        assert_whole(lab, bare, expected)
    if wrapped[0] != wrapped[1] and prefix != "base_model.model.":
        assert any("without a base" in text for text in [*bare.report.notes, *bare.report.warnings])


def test_a_peft_model_inside_a_peft_model(bench) -> None:
    lab = bench(llama)
    inner_folder = lab.train("a", target_modules=["q_proj", "v_proj"])
    with quiet():
        inner = PeftModel.from_pretrained(lab.fresh(), inner_folder, adapter_name="a")
        outer = get_peft_model(inner, LoraConfig(r=2, target_modules=["v_proj", "o_proj"]), adapter_name="b")
        for name, parameter in outer.named_parameters():
            if ".b." in name and "lora_" in name:
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
        outer.save_pretrained(lab.folder / "nested")
    nested = str(lab.folder / "nested" / "b")
    assert min(load_file(Path(nested) / "adapter_model.safetensors")).startswith("base_model.model.base_model.model.")
    plain = renamed(nested, lambda name: name.removeprefix("base_model.model."), "plain")
    expected = said(lab.with_adapters(inner_folder, plain))
    for source in (lab.base, None, lab.model):
        assert_whole(lab, samerge.merge(source, [inner_folder, nested], **EXACT), expected)


_OTHER = {"target_modules": ["o_proj"]}


@pytest.mark.parametrize(
    "settings",
    [
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {"target_modules": r".*\.0\..*(up_proj|q_proj)"}),
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["0.self_attn.v_proj"]}, _OTHER),
        ({"target_modules": "all-linear"}, {"target_modules": ["q_proj"]}),
        pytest.param(
            ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, _OTHER),
            marks=takes_layer_0,
        ),
    ],
    ids=["layers and a regex", "exclusion", "all-linear", "one layer"],
)
def test_without_a_base_the_adapters_own_words_are_joined(
    bench, settings: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    lab = bench(llama)
    folders = [lab.train(name, **own) for name, own in zip("ab", settings, strict=True)]
    merged = samerge.merge(None, folders, **EXACT)
    assert_whole(lab, merged, said(lab.with_adapters(*folders)))
    with quiet():
        model = PeftModel.from_pretrained(lab.fresh(), str(lab.folder / "out"))
    targeted = {
        name for name, module in model.get_base_model().named_modules() if isinstance(module, peft.tuners.lora.Linear)
    }
    assert targeted == set(merged.factors)


def test_without_a_base_one_adapters_own_words_are_kept(bench) -> None:
    lab = bench(llama)
    own = {"target_modules": r".*\.(q_proj|v_proj)", "exclude_modules": r".*\.0\..*v_proj"}
    merged = samerge.merge(None, [lab.train("a", **own), lab.train("b", **own)], **EXACT)
    assert {key: merged.settings[key] for key in own} == own


def test_of_nothing_in_common_nothing_is_merged(bench, tmp_path: Path) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), base_model_name_or_path="ada/llama")
    other = Bench(bert().eval(), tmp_path / "other")
    (tmp_path / "other").mkdir()
    stranger = other.altered(other.train("b", target_modules=["query"]), base_model_name_or_path="ada/bert")
    with pytest.raises(samerge.BaseModelError, match=r"no module in common .* do not name the same base model"):
        samerge.merge(None, [folder, stranger], **EXACT)
    second = lab.altered(lab.train("c", target_modules=["v_proj"]), base_model_name_or_path="ada/llama")
    samerge.merge(None, [folder, second], **EXACT)  # the same base by name


def test_one_module_of_two_shapes(bench, tmp_path: Path) -> None:
    lab = bench(llama)
    (tmp_path / "wide").mkdir()
    wide = Bench(llama(hidden_size=32).eval(), tmp_path / "wide")
    folders = [lab.train("a", target_modules=["q_proj"]), wide.train("b", target_modules=["q_proj"])]
    with pytest.raises(samerge.BaseModelError, match=r"'b' updates \(32, 32\)"):
        samerge.merge(None, folders, **EXACT)
    inside = renamed(folders[1], lambda name: f"policy.{name}", "inside")
    with pytest.raises(samerge.BaseModelError, match=r"updates \(32, 32\), .* of the others \(16, 16\)"):
        samerge.merge(None, [folders[0], inside], **EXACT)


@pytest.mark.parametrize(("whole", "part"), [("qkv_proj", "q_proj"), ("gate_up_proj", "up_proj")])
def test_a_module_in_one_piece_beside_its_parts(bench, whole: str, part: str) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=[part, "down_proj"])
    fused = renamed(lab.train("b", target_modules=[part, "down_proj"]), lambda name: name.replace(part, whole), "fused")
    with pytest.raises(samerge.BaseModelError, match=rf"'fused' adapts '.*\.{whole}' in one piece, 'a' its part"):
        samerge.merge(None, [folder, fused], **EXACT)


def test_two_towers_that_names_could_mean(bench, tmp_path: Path) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    moved = (("model.layers.0", "text.layers.0"), ("model.layers.1", "image.layers.1"))
    towers = renamed(folder, begins(moved), "towers")
    bare = renamed(folder, lambda name: name.removeprefix("model."), "bare")
    with pytest.raises(samerge.BaseModelError, match="in doubt which are the same"):
        samerge.merge(None, [towers, bare], **EXACT)
