"""The base run on a few inputs: what is measured, on what, and what becomes of the model and of mistakes."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import NAMES, Beast, words
from torch import nn

import samerge
from samerge.errors import AdapterError, BaseModelError, OptionError
from samerge.merging.calibration.base import adapted
from samerge.merging.calibration.calibrate import Metrics, calibrate
from samerge.merging.calibration.samples import MOST, Samples
from samerge.merging.calibration.texts import LENGTH, MOST_TOKENS, ROWS
from samerge.merging.inputs import open_base
from samerge.merging.verifying import verify
from samerge.methods.problem import Site
from samerge.options.calibration import Calibration
from samerge.parallel.progress import Progress

CPU = torch.device("cpu")


def sites(model: nn.Module, *endings: str) -> list[Site]:
    """The linear layers of a model by the ends of their names, as if adapters had them."""
    from samerge.adapters.layouts import Layout

    found = []
    for name, module in model.named_modules():
        if name.endswith(endings) and isinstance(module, nn.Linear):
            found.append(Site(name, f"{name}.weight", Layout(), tuple(module.weight.shape), {}))
    return found


def measured(given: Calibration, wanted: list[Site], base) -> Metrics:
    return calibrate(given, wanted, base, open_base(base, required=False), CPU, Progress(False))


def dense(found: Metrics, module: str, width: int) -> torch.Tensor:
    """S of a module, whole."""
    return found.of[module].times(torch.eye(width, dtype=torch.float64))


def expected(rows: torch.Tensor) -> torch.Tensor:
    """S of what a module took (positions, d): the fourth root of its second moment and a tenth of its mean square."""
    x = rows.double()
    C = x.T @ x / len(x)
    values, E = torch.linalg.eigh(C / C.diagonal().mean() + 0.1 * torch.eye(len(C), dtype=C.dtype))
    return (E * values**0.25) @ E.T


def alike(one: Metrics, other: Metrics) -> None:
    """Both have the same modules, and the same S for each."""
    assert set(one.of) == set(other.of)
    for name, S in one.of.items():
        width = S.V.shape[0]
        torch.testing.assert_close(dense(one, name, width), dense(other, name, width), rtol=1e-3, atol=1e-4)


@pytest.fixture
def with_words(llama: Beast, tmp_path) -> str:
    """The tiny Llama with a tokenizer."""
    llama.model().save_pretrained(tmp_path / "base")
    words(tmp_path / "base")
    return str(tmp_path / "base")


# --- what is measured ---


def test_the_metric_is_that_of_what_a_layer_takes(llama: Beast) -> None:
    """By the model's own hidden states: the first projection takes the embeddings after the norm."""
    model = llama.model()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    found = measured(Calibration(run=lambda m: m(input_ids=ids)), sites(model, "q_proj", "down_proj"), model)
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        taken = model.model.layers[1].input_layernorm(states[1])
    own = dense(found, "model.layers.1.self_attn.q_proj", 32)
    torch.testing.assert_close(own, expected(taken.flatten(0, 1)), rtol=1e-4, atol=1e-5)
    assert found.of["model.layers.0.mlp.down_proj"].V.shape[0] == 24


def test_all_runs_of_a_function_count(llama: Beast) -> None:
    model = llama.model()
    one, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10, 11, 12]])
    wanted = sites(model, "q_proj")

    def both(m: nn.Module) -> None:
        m(input_ids=one)
        m(input_ids=other)

    apart = measured(Calibration(run=both), wanted, model)
    together = measured(Calibration(run=lambda m: m(input_ids=torch.cat([one, other]))), wanted, model)
    alike(apart, together)


def test_random_tokens_are_the_same_each_time_and_in_the_vocabulary(llama: Beast) -> None:
    seen = []
    model = llama.model()
    model.register_forward_pre_hook(lambda m, given, named: seen.append(named["input_ids"]), with_kwargs=True)
    wanted = sites(model, "q_proj")
    one, other = measured(Calibration(), wanted, model), measured(Calibration(), wanted, model)
    ids = torch.cat(seen[:ROWS])
    assert ids.shape == (ROWS, LENGTH)
    assert 0 <= int(ids.min()) < int(ids.max()) < 40
    alike(one, other)
    assert one.notes == (f"calibration: the base was run on {ROWS * LENGTH} tokens drawn at random",)


def test_no_more_tokens_than_the_model_has_places_for(zoo) -> None:
    """Tiny GPT-2 has 32 positions."""
    gpt2 = zoo("gpt2")
    merged = samerge.merge(gpt2.base, gpt2.adapters, calibration="random", progress=False)
    assert f"{ROWS * 28} tokens" in " ".join(merged.report.record.notes)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_every_kind_of_text_model_from_its_folder(zoo, name) -> None:
    """As a live model and from files: the same merge, for all that is adapted."""
    own = zoo(name)
    merged = samerge.merge(own.base, own.adapters, calibration="random", progress=False)
    without = [note.split("; ")[1] for note in merged.report.record.notes if "go without" in note]
    # the pooler takes one position a row
    assert without == (["1 of 11 modules go without, such as bert.pooler.dense"] if name == "bert" else [])
    live = samerge.merge(own.model(), own.adapters, calibration="random", progress=False)
    for module in merged.factors:
        torch.testing.assert_close(merged.delta(module), live.delta(module), rtol=1e-3, atol=1e-5)
    without = samerge.merge(own.base, own.adapters, progress=False)
    assert any(not torch.allclose(without.delta(m), merged.delta(m), rtol=1e-2) for m in merged.factors)


def test_images_by_a_function(zoo) -> None:
    vit = zoo("vit")
    pictures = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    merged = samerge.merge(vit.model(), vit.adapters, calibration=lambda m: m(pixel_values=pictures), progress=False)
    assert any("the base was run on inputs of a function" in note for note in merged.report.record.notes)
    assert merged.report.record.options["calibration"] == "inputs in memory"
    with pytest.raises(OptionError, match="ViTForImageClassification does not take any"):
        samerge.merge(vit.base, vit.adapters, calibration="random", progress=False)


@pytest.mark.parametrize(("settings", "mode"), [({"padding": 1}, "zeros"), ({"stride": 2, "dilation": 2}, "reflect")])
def test_convolutions_take_patches(settings, mode) -> None:
    """What the flattened weight is multiplied with: a column is one place of the kernel in one channel."""
    from samerge.adapters.layouts import Layout

    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding_mode=mode, bias=False, **({"padding": 2} | settings)))
    site = Site("0", "0.weight", Layout("conv", kernel=(3, 3, 3)), (6, 27), {})
    x = torch.randn(2, 3, 8, 8) * torch.tensor([1.0, 2.0, 10.0])[:, None, None]
    found = measured(Calibration(run=lambda m: m(x)), [site], model)
    # by the convolution itself: the weight that picks one entry of the patch
    picks = torch.eye(27).view(27, 3, 3, 3)
    one = nn.Conv2d(3, 27, 3, padding_mode=mode, bias=False, **({"padding": 2} | settings))
    one.weight.data = picks
    patches = one(x).detach().permute(0, 2, 3, 1).reshape(-1, 27)
    torch.testing.assert_close(dense(found, "0", 27), expected(patches), rtol=1e-4, atol=1e-5)


def test_more_positions_than_are_kept(llama: Beast) -> None:
    """A sample of them, and nearly the same metric; and no more is held than twice `MOST`."""
    model = nn.Sequential(nn.Linear(8, 4))
    site = sites(model, "0")
    x = torch.randn(40 * MOST, 8) * torch.arange(1, 9)
    samples = Samples({"0": model[0]})
    with samples.watching():
        for part in x.split(777):
            model(part)
    assert samples.groups() == [("0",)]
    rows = samples.rows("0")
    assert MOST / 2 < len(rows) <= 2 * MOST
    # from the first to the last
    places = [int((x == row).all(dim=1).nonzero()[0]) for row in rows[:: len(rows) // 100]]
    assert min(places) < 4 * MOST
    assert max(places) > 36 * MOST
    found = measured(Calibration(run=lambda m: [m(part) for part in x.split(777)]), site, model)
    torch.testing.assert_close(dense(found, "0", 8), expected(x), rtol=0.1, atol=0.05)


def test_modules_that_take_one_tensor_share_their_rows(llama: Beast) -> None:
    model = llama.model()
    samples = Samples({name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)})
    with samples.watching(), torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
        model(input_ids=torch.tensor([[8, 9]]))
    groups = [names for names in samples.groups() if len(samples.rows(names[0])) == 5]
    ends = sorted(tuple(name.rpartition(".")[2] for name in names) for names in groups if "layers.0" in names[0])
    assert ends == [("down_proj",), ("gate_proj", "up_proj"), ("o_proj",), ("q_proj", "k_proj", "v_proj")]


# --- texts ---


def test_a_file_of_texts(with_words, llama: Beast, tmp_path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "w5 w6 w7 w8 w5 w4"}\n\n{"text": "w9 w10", "label": 1}\n')
    wanted = sites(llama.model(), "q_proj")
    found = measured(Calibration(file=file), wanted, with_words)
    told = "calibration: the base was run on 2 texts of 8 tokens of texts.jsonl"
    assert found.notes == (f"{told}; 8 positions are few, and 512 or more would tell better what the layers take",)

    def by_hand(model: nn.Module) -> None:
        model(input_ids=torch.tensor([[5, 6, 7, 8, 5, 4]]))
        model(input_ids=torch.tensor([[9, 10]]))

    alike(found, measured(Calibration(run=by_hand), wanted, llama.model()))


def test_a_list_of_texts_long_ones_cut(with_words, llama: Beast) -> None:
    found = measured(Calibration(texts=("w5 " * 300, "w6 w7")), sites(llama.model(), "q_proj"), with_words)
    assert found.notes[0].startswith(f"calibration: the base was run on 2 texts of {MOST_TOKENS + 2} tokens; ")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("", "has no line"),
        ("not json\n", "line 1 of .* is no JSON"),
        ('{"text": "w1"}\n{"txt": "w2"}\n', "line 2 of .* has neither a text nor messages"),
        ('{"text": 5}\n', "line 1 of .* has neither"),
        ('["w1"]\n', "line 1 of .* has neither"),
        ('{"messages": ["w1"]}\n', "line 1 of .* has neither"),
        ('{"messages": [{"role": "user", "content": "w1"}]}\n', "chat template does not take the messages"),
    ],
)
def test_files_that_are_none(with_words, llama: Beast, tmp_path, written, told) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(written)
    with pytest.raises(OptionError, match=told):
        measured(Calibration(file=file), sites(llama.model(), "q_proj"), with_words)


def test_a_file_that_is_not_there(llama: Beast, tmp_path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        samerge.merge(llama.base, llama.adapters, calibration=tmp_path / "none.jsonl", progress=False)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5"])
def test_a_base_without_a_tokenizer(zoo, name) -> None:
    """Of some kinds transformers would make one of the configuration alone, which knows no word."""
    llama = zoo(name)
    with pytest.raises(BaseModelError, match=r"tokenizer of the base .* cannot be read .*'random' needs none"):
        samerge.merge(llama.base, llama.adapters, calibration=["w1 w2"], progress=False)


@pytest.mark.parametrize("value", ["texts.txt", "randm", [], [""], [" "], ["a", 5], [[]], [["a"]], 3, {"a": "b"}])
def test_values_that_are_none(llama: Beast, value) -> None:
    with pytest.raises(OptionError, match=r"calibration=.* is not known"):
        samerge.merge(llama.base, llama.adapters, calibration=value, progress=False)


# --- the model ---


def test_adapters_of_a_live_model_do_not_take_part_and_nothing_of_it_changes(llama: Beast) -> None:
    model = llama.peft_model()
    model.train()
    model.base_model.model.model.layers[0].mlp.eval()
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    merged = samerge.merge(model, list(NAMES), calibration="random", progress=False)
    alone = samerge.merge(llama.model(), llama.adapters, calibration="random", progress=False)
    for module in merged.factors:
        torch.testing.assert_close(merged.delta(module), alone.delta(module), rtol=1e-3, atol=1e-5)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert [m.training for m in model.modules()] == modes
    assert model.active_adapter == "math"
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not any(getattr(m, "disable_adapters", False) is True for m in model.modules())


def test_a_model_whose_adapters_are_disabled_stays_so(llama: Beast) -> None:
    model = llama.peft_model()
    model.base_model.disable_adapter_layers()
    samerge.merge(model, list(NAMES), calibration="random", progress=False)
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert all(m.disable_adapters for m in model.modules() if isinstance(m, BaseTunerLayer))


def test_merged_adapters_are_refused(llama: Beast) -> None:
    model = llama.peft_model()
    model.merge_adapter(["math"])
    with pytest.raises(AdapterError, match="unmerge_adapter"):
        samerge.merge(model, list(NAMES), calibration="random", progress=False)


def test_a_function_that_fails_leaves_the_model_as_it_was(llama: Beast) -> None:
    model = llama.peft_model().train()

    def fails(m: nn.Module) -> None:
        m(input_ids=torch.tensor([[5, 6]]))
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own mistake"):
        samerge.merge(model, list(NAMES), calibration=fails, progress=False)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())


def test_a_function_that_does_not_run_the_model(llama: Beast) -> None:
    with pytest.raises(
        OptionError, match="no linear layer or convolution that is adapted took 8 positions or more; give more"
    ):
        samerge.merge(llama.model(), llama.adapters, calibration=lambda model: None, progress=False)


def test_on_a_live_model_by_pefts_names(llama: Beast) -> None:
    model = llama.peft_model()
    merged = samerge.add_weighted_adapter(model, list(NAMES), adapter_name="one", calibration="random", progress=False)
    alone = samerge.merge(llama.base, llama.adapters, calibration="random", progress=False)
    for module in alone.factors:
        torch.testing.assert_close(merged.delta(module), alone.delta(module), rtol=1e-3, atol=1e-5)


def test_a_broken_base_is_told(llama: Beast) -> None:
    model = llama.model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(BaseModelError, match=r"hands to .* is not finite"):
        samerge.merge(model, llama.adapters, method="even", calibration="random", progress=False)


def test_modules_that_are_not_seen_go_without(llama: Beast) -> None:
    model = llama.model()
    merged = samerge.merge(
        model,
        llama.adapters,
        calibration=lambda m: m.model.layers[0](torch.randn(1, 9, 32), position_embeddings=_places(m)),
        progress=False,
    )
    plain = samerge.merge(model, llama.adapters, progress=False)
    note = next(note for note in merged.report.record.notes if note.startswith("calibration"))
    assert "modules go without, such as model.layers.1" in note
    for module in merged.factors:
        same = torch.allclose(merged.delta(module), plain.delta(module), rtol=1e-3, atol=1e-6)
        assert same or ".layers.0." in module


def _places(model):
    x = torch.randn(1, 9, 32)
    return model.model.rotary_emb(x, torch.arange(9)[None])


def test_no_base(llama: Beast) -> None:
    with pytest.raises(OptionError, match="calibration runs the base model; give base as"):
        samerge.merge(None, llama.adapters, calibration="random", progress=False)


def test_a_base_that_transformers_does_not_know(llama: Beast, tmp_path) -> None:
    llama.model().save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(config | {"model_type": "unheard_of", "architectures": ["UnheardOf"]})
    )
    with pytest.raises(BaseModelError, match=r"transformers cannot load it .*give the loaded model"):
        samerge.merge(str(tmp_path / "base"), llama.adapters, method="even", calibration="random", progress=False)


# --- the record ---


def test_the_record_and_what_makes_it_again(llama: Beast, tmp_path) -> None:
    merged = samerge.merge(llama.base, llama.adapters, calibration="random", progress=False)
    merged.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "samerge.json").read_text())["options"]["calibration"] == "random"
    assert verify(tmp_path / "out", reproduce=True)[-1].sound


def test_inputs_in_memory_cannot_be_made_again(llama: Beast, tmp_path) -> None:
    ids = torch.arange(3, 20)[None]
    merged = samerge.merge(llama.base, llama.adapters, calibration=lambda m: m(input_ids=ids), progress=False)
    merged.save(tmp_path / "out")
    last = verify(tmp_path / "out", reproduce=True)[-1]
    assert last.sound is None
    assert "in memory" in last.told


def test_comparisons_and_searches_run_the_base_once(llama: Beast) -> None:
    runs = []

    def run(model: nn.Module) -> None:
        runs.append(1)
        model(input_ids=torch.arange(3, 20)[None])

    samerge.tune(
        llama.base,
        llama.adapters,
        lambda merged: 0.0,
        search={"scaling": (0.5, 1.0)},
        trials=3,
        calibration=run,
        progress=False,
    )
    assert runs == [1]


@pytest.mark.parametrize("kind", ["pipeline", "Trainer", "LlamaConfig"])
def test_a_configuration_names_no_class_but_a_models(llama: Beast, tmp_path, kind) -> None:
    """What else it names is not called: the model is found by its type."""
    llama.model().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": [kind]}))
    found = samerge.merge(str(tmp_path / "base"), llama.adapters, calibration="random", progress=False)
    expected = samerge.merge(llama.base, llama.adapters, calibration="random", progress=False)
    for module in expected.factors:
        torch.testing.assert_close(found.delta(module), expected.delta(module), rtol=1e-3, atol=1e-5)


def test_code_of_a_bases_own_is_not_run(llama: Beast, tmp_path) -> None:
    llama.model().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    own = {
        "architectures": ["Mine"],
        "model_type": "mine",
        "auto_map": {"AutoModel": "mine.Mine", "AutoConfig": "mine.C"},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (tmp_path / "base" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BaseModelError, match="transformers cannot load it"):
        samerge.merge(str(tmp_path / "base"), llama.adapters, method="even", calibration="random", progress=False)
    assert not (tmp_path / "ran").exists()


# --- what a reviewer found ---


def test_samples_are_copies() -> None:
    """A buffer that the model fills anew for each batch."""
    layer, buffer = nn.Linear(4, 3), torch.zeros(5, 4)
    samples = Samples({"0": layer})
    with samples.watching(), torch.no_grad():
        for number in range(3):
            buffer.fill_(number)
            layer(buffer)
    assert samples.rows("0")[:, 0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5


def test_modules_with_one_input_stay_together_when_there_are_many_rows() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(4, 2)
    samples = Samples({"first": first, "second": second})
    with samples.watching(), torch.no_grad():
        for _ in range(9):
            x = torch.randn(MOST, 4)
            first(x)
            second(x)
    assert samples.groups() == [("first", "second")]


def test_whole_modules_that_adapters_trained_do_not_take_part(llama: Beast) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(llama.model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_(std=5.0)
    wanted = sites(llama.model(), "q_proj")
    alike(measured(Calibration(), wanted, model), measured(Calibration(), wanted, llama.model()))
    assert all(p.requires_grad for name, p in model.named_parameters() if "modules_to_save" in name)


def test_adapters_of_embeddings_and_heads(llama: Beast, tmp_path) -> None:
    """Token numbers come from the base's own embeddings; a head that is adapted sees all positions."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"], init_lora_weights=False)
    model = get_peft_model(llama.model(), config)
    model.add_adapter("other", config)
    seen = []
    model.get_base_model().lm_head.register_forward_pre_hook(lambda m, given: seen.append(given[0].shape[1]))
    samerge.merge(model, ["default", "other"], calibration="random", progress=False)
    assert seen == [LENGTH] * ROWS
    lean = get_peft_model(llama.model(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    lean.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    lean.get_base_model().lm_head.register_forward_pre_hook(lambda m, given: seen.append(given[0].shape[1]))
    samerge.merge(lean, ["default", "other"], calibration="random", progress=False)
    assert seen[ROWS:] == [1] * ROWS


def test_a_model_that_is_offloaded(llama: Beast) -> None:
    from accelerate import cpu_offload

    wanted = sites(llama.model(), "q_proj", "down_proj")
    alike(measured(Calibration(), wanted, cpu_offload(llama.model())), measured(Calibration(), wanted, llama.model()))


def test_texts_longer_than_the_model(zoo, tmp_path) -> None:
    gpt2 = zoo("gpt2")
    gpt2.model().save_pretrained(tmp_path / "base")
    words(tmp_path / "base")
    merged = samerge.merge(str(tmp_path / "base"), gpt2.adapters, calibration=["w5 " * 300], progress=False)
    assert "1 texts of 28 tokens" in " ".join(merged.report.record.notes)


def test_what_no_tokenizer_makes_a_token_of(with_words, llama: Beast) -> None:
    with pytest.raises(OptionError, match="makes no token of the texts"):
        samerge.merge(with_words, llama.adapters, calibration=Calibration(texts=(" ", "  ")), progress=False)


def test_functions_of_any_kind(llama: Beast) -> None:
    from dataclasses import dataclass

    @dataclass
    class Runs:
        count: int = 0

        def __call__(self, model: nn.Module) -> None:
            self.count += 1
            model(input_ids=torch.arange(3, 20)[None])

    runs = Runs()
    samerge.merge(llama.base, llama.adapters, calibration=runs, progress=False)
    assert runs.count == 1


def test_random_numbers_of_others_are_not_touched(bert: Beast, tmp_path) -> None:
    """A file without the head of its architecture: transformers draws one."""
    from safetensors.torch import load_file, save_file

    bert.model().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file, {"format": "pt"})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    samerge.merge(str(tmp_path / "base"), bert.adapters, calibration="random", progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.layers.0.attn.q", "model.layers.1.attn.q"], ["language.layers.0.attn.q", "language.layers.1.attn.q"]),
        (["layers.0.attn.q", "layers.0.mlp.up"], ["language.layers.0.attn.q", "language.layers.0.mlp.up"]),
        (["layers.0.attn.q"], []),  # of two towers
        (["vision.layers.0.attn.q", "vision.layers.1.attn.q"], ["vision.layers.0.attn.q"]),  # no layer of another tower
        (["other.blocks.0.q"], []),
    ],
)
def test_names_that_begin_in_another_way(names, found) -> None:
    """Two towers, of which one is longer and has what the other has not."""

    class Place(nn.Module):
        def __init__(self, children: dict[str, nn.Module]) -> None:
            super().__init__()
            for name, child in children.items():
                self.add_module(name, child)

    def block(mlp: bool) -> nn.Module:
        parts: dict[str, nn.Module] = {"attn": Place({"q": nn.Linear(2, 2)})}
        return Place(parts | ({"mlp": Place({"up": nn.Linear(2, 2)})} if mlp else {}))

    model = Place(
        {
            "language": Place({"layers": nn.ModuleList([block(True), block(True)])}),
            "vision": Place({"layers": nn.ModuleList([block(False)])}),
        }
    )
    there = {id(module): name for name, module in model.named_modules()}
    assert [there[id(module)] for module in adapted(model, names).values()] == found


def test_where_the_texts_lie_is_not_published(with_words, llama: Beast, tmp_path) -> None:
    from samerge.report.sharing import concealed

    (tmp_path / "secret").mkdir()
    file = tmp_path / "secret" / "texts.jsonl"
    file.write_text('{"text": "w5 w6 w7 w8 w9 w5 w4 w3 w2"}\n')
    merged = samerge.merge(with_words, llama.adapters, calibration=file, progress=False)
    assert "secret" not in json.dumps(concealed(merged.report.record).json())


# --- what a tester found ---


def test_a_tensor_that_is_changed_in_place_between_two_layers() -> None:
    """As the same net written out of place."""

    class Net(nn.Module):
        def __init__(self, inside: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b, self.inside = nn.Linear(6, 6), nn.Linear(6, 6), inside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            factor = torch.linspace(0, 3, 6)
            x = x.relu_().mul_(factor) if self.inside else x.relu() * factor
            return self.b(x) + y

    inputs = torch.randn(20, 6)
    found = []
    for inside in (True, False):
        net = Net(inside)
        run = Calibration(run=lambda model: model(inputs.clone()))
        found.append(measured(run, sites(net, "a", "b"), net))
    alike(*found)


def test_a_model_that_is_compiled_already(llama: Beast) -> None:
    ids = torch.arange(3, 20)[None]
    model = llama.model()
    model.compile(backend="eager")
    with torch.no_grad():
        model(input_ids=ids)
    wanted = sites(llama.model(), "q_proj", "down_proj")
    run = Calibration(run=lambda m: m(input_ids=ids))
    alike(measured(run, wanted, model), measured(run, wanted, llama.model()))


@pytest.mark.parametrize("text", ["\ud800 some words"])
def test_texts_that_a_tokenizer_does_not_take(with_words, llama: Beast, text) -> None:
    with pytest.raises(OptionError, match=r"tokenizer does not take input 2 .*give other texts"):
        samerge.merge(with_words, llama.adapters, calibration=["w1 w2", text], progress=False)


def test_a_mark_at_the_beginning_of_a_file(with_words, llama: Beast, tmp_path) -> None:
    """As editors on Windows write it; and an ending in capitals."""
    file = tmp_path / "TEXTS.JSONL"
    file.write_bytes(b'\xef\xbb\xbf{"text": "w5 w6 w7 w8 w9 w5 w4 w3 w2"}\r\n')
    merged = samerge.merge(with_words, llama.adapters, calibration=file, progress=False)
    assert "1 texts of 9 tokens" in " ".join(merged.report.record.notes)


def test_special_tokens_of_a_template_are_not_written_twice(with_words, llama: Beast, tmp_path) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(with_words)
    own.chat_template = "w1 {% for m in messages %}{{ m.content }} {% endfor %}"
    own.save_pretrained(with_words)
    seen = []
    file = tmp_path / "texts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "w5 w6 w7 w8 w9 w5 w4 w3"}]}\n')
    model = llama.model()
    model.config.name_or_path = model.name_or_path = with_words
    model.register_forward_pre_hook(lambda m, given, named: seen.append(named["input_ids"]), with_kwargs=True)
    measured(Calibration(file=file), sites(model, "q_proj"), model)
    messages = [{"role": "user", "content": "w9 w8 w7 w6 w5 w9 w8"}]
    merged = samerge.merge(model, llama.adapters, calibration=[messages, "w5"], progress=False)
    assert seen[0].tolist() == [[1, 5, 6, 7, 8, 9, 5, 4, 3]]
    assert [one.tolist() for one in seen[1:]] == [[[1, 9, 8, 7, 6, 5, 9, 8]], [[5]]]
    assert merged.report.record.options["calibration"] == "inputs in memory"


@pytest.mark.parametrize("values", [["random"], ["random", "none"]])
def test_it_can_be_searched(llama: Beast, values) -> None:
    found = samerge.tune(
        llama.base, llama.adapters, lambda merged: 1.0, search={"calibration": values}, trials=2, progress=False
    )
    assert {trial.options.get("calibration") for trial in found.trials} <= {"random", None}


def test_functions_cannot_be_searched(llama: Beast) -> None:
    with pytest.raises(OptionError, match="searching calibration: function cannot be recorded"):
        samerge.tune(llama.base, llama.adapters, lambda m: 1.0, search={"calibration": [lambda m: None]}, trials=2)


@pytest.mark.parametrize(
    ("given", "told"), [("random", "on tokens drawn at random"), (None, "No data and no training")]
)
def test_the_card_says_that_the_base_was_run(llama: Beast, tmp_path, given, told) -> None:
    samerge.merge(llama.base, llama.adapters, calibration=given, progress=False).save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert told in card
    assert ("No data" in card) == (given is None)
    assert ("in the metric of what each layer takes" in card) == (given is not None)


def test_where_it_was_measured_to_help_the_report_says_so(zoo) -> None:
    """Four adapters of a language model, merged to their rank by the chain, by weights alone."""

    def told(name: str, count: int, **options: object) -> bool:
        beast = zoo(name)
        copies = {str(n): list(beast.adapters.values())[n % len(beast.adapters)] for n in range(count)}
        notes = samerge.merge(beast.base, copies, progress=False, **options).report.record.notes
        return any("calibration='random'" in note for note in notes)

    assert told("llama", 4)
    assert told("llama", 4, method="even")
    assert not told("llama", 3)
    assert not told("llama", 4, weights=[1, 1, 1, 0])
    assert not told("llama", 4, rank=100)
    assert not told("llama", 4, density=0.5)
    assert not told("llama", 4, calibration="random")
    assert not told("llama", 4, method="ties", density=0.5)
    assert not told("bert", 4)
