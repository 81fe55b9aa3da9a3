"""The public suites on tiny stand-ins of the same layout: the whole command, offline, against slow obvious ways."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from statistics import fmean

import huggingface_hub.constants
import numpy
import pytest
import torch
import transformers
from evidence import collect as collecting
from hub_cache import adapter, pickled, repository, tokenizer
from peft import PeftModel
from PIL import Image
from public import flan_t5_glue, hub, knots_nli, knots_vision, run
from public.flan_t5_glue import PROMPTS, FlanT5Glue
from public.knots_nli import KnotsNli
from public.knots_vision import CLASSES, DATA, KnotsVision
from public.published import PUBLISHED, SOURCES, Row
from public.table import table
from suites import PUBLIC

import samerge

README = Path(hub.__file__).parent / "README.md"
SUITES = {suite.name: suite for suite in (FlanT5Glue, KnotsNli, KnotsVision)}
# PEFT asks a transformers model for a property that newer releases of transformers call by another name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub's, and no way to the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def command(name, tmp_path, capsys):
    """What the command prints: the cells of each row, by its first two cells; the first source's, where several are."""
    run.main([name, "--untuned", "--only", "saliency", "--cache", str(tmp_path / "own")])
    printed = capsys.readouterr().out
    found = {}
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("|"):
            found.setdefault(tuple(cells[:2]), cells)
    return printed, found


def merged(suite, tmp_path):
    """The folder of the default merge at the adapters' rank."""
    one = suite(cache=tmp_path / "own")
    done = samerge.merge(one.base(), one.adapters(), rank=4, dtype="float32", progress=False)
    done.save(tmp_path / "merged")
    return tmp_path / "merged"


def spearman(first, second) -> float:
    """Pearson's correlation of ranks, a tie having the mean of its places; not a number where all are tied."""

    def ranks(values):
        order = sorted(values)
        return [fmean(i for i, other in enumerate(order) if other == value) for value in values]

    if len(set(first)) == 1:
        return math.nan
    return float(numpy.corrcoef(ranks(first), ranks(second))[0, 1])


# Flan-T5

COLUMNS = ("sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "question1", "question2")


def glue(task: str, count: int = 6) -> list[dict]:
    """Rows with all columns that a prompt may ask for."""
    draw = torch.Generator().manual_seed(len(task) + ord(task[0]))
    words = ("red", "blue", "green", "dog", "cat", "runs")
    rows = []
    for number in range(count):
        texts = {
            column: " ".join(words[int(i)] for i in torch.randint(len(words), (3,), generator=draw))
            for column in COLUMNS
        }
        classes = len(PROMPTS[task].answers)
        rows.append({**texts, "label": number % classes if classes else 0.8 * number})
    return rows


@pytest.fixture
def flan(cache, monkeypatch):
    """A tiny T5 that was taught to write answers, not always the right ones, and eight random adapters."""
    monkeypatch.setattr(hub, "rows", lambda path, name, split, revision=None: glue(name))
    exchanges = [PROMPTS[task].exchange(row) for task in PROMPTS for row in glue(task)]
    base = repository(cache, flan_t5_glue.BASE)
    tokens = tokenizer([text for exchange in exchanges for text in exchange], base, end="</s>")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokens)}
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0)
    )
    answers = [answer for _, answer in exchanges]
    taught = [*answers[:3], *answers[1:-2]]  # some are their neighbours'
    inputs = tokens([asked for asked, _ in exchanges], padding=True, return_tensors="pt")
    labels = tokens(taught, padding=True, return_tensors="pt")["input_ids"]
    labels[labels == 0] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        loss = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(base)
    for number, task in enumerate(PROMPTS):
        name = FlanT5Glue.adapter_id.format(task)
        adapter(copy.deepcopy(model), repository(cache, name), ("q", "v"), number, "SEQ_2_SEQ_LM", 0.1)
    return model, tokens


def written(model, tokens, text: str) -> str:
    """Greedy decoding, a token at a time, of at most ten with the first."""
    asked = torch.tensor([tokens(text)["input_ids"]])
    ids = [0]
    while len(ids) < 10 and ids[-1] != 1:
        ids.append(int(model(input_ids=asked, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tokens.decode(ids, skip_special_tokens=True)


@torch.no_grad()
def slow_glue(model, tokens, task: str) -> float:
    """A task's score, row by row."""
    found = []
    for row in glue(task):
        asked, answer = PROMPTS[task].exchange(row)
        found.append((written(model, tokens, asked), answer))
    if task == "stsb":
        return 100 * spearman([flan_t5_glue.number(a) for a, _ in found], [float(b) for _, b in found])
    return 100 * fmean(a == b for a, b in found)


def test_flan_t5_from_the_hub_to_the_table(flan, tmp_path, capsys, monkeypatch):
    model, tokens = flan
    printed, rows = command("flan-t5-glue", tmp_path, capsys)
    assert "[FusionBench](https://" in printed
    base = {task: slow_glue(model, tokens, task) for task in PROMPTS}
    assert not math.isnan(base["stsb"])
    assert 0 < fmean(base.values()) < 100
    assert len(set(base.values())) > 2
    published = PUBLISHED["flan-t5-glue"][0]
    assert rows["base alone", ""][2:] == [
        *(f"{score:.1f}" for score in published.scores),
        f"{published.mean:.1f}",
        f"{fmean(base.values()):.1f}",
        "FusionBench",
    ]
    hubs = {task: hub.snapshot(FlanT5Glue.adapter_id.format(task)) for task in PROMPTS}
    own = {
        task: slow_glue(PeftModel.from_pretrained(copy.deepcopy(model), hubs[task]), tokens, task) for task in PROMPTS
    }
    assert rows["own adapters", ""][-2] == f"{fmean(own.values()):.1f}"
    one = PeftModel.from_pretrained(copy.deepcopy(model), merged(FlanT5Glue, tmp_path))
    ours = {task: slow_glue(one, tokens, task) for task in PROMPTS}
    assert rows["**saliency**", "untuned, rank 4"][2:] == [
        *(f"{score:.1f}" for score in ours.values()),
        "",
        f"{fmean(ours.values()):.1f}",
        "",
    ]
    assert all(rows[row.merge, ""][-2] for row in PUBLISHED["flan-t5-glue"] if row.same)
    assert not rows["WUDI", ""][-2]
    # The evidence's own way: right answers of the tasks that have such.
    monkeypatch.setattr("evidence.scores.LEAST", -99.0)  # the adapters were not trained
    found = collecting.collect(tmp_path / "own", {})
    assert set(found["suites"]["flan-t5-glue"]["accuracy"]) == set(PROMPTS) - {"stsb"}
    # A second run measures nothing, and downloads nothing.
    monkeypatch.setattr(hub, "copy_adapter", None)
    lines = (tmp_path / "own/flan-t5-glue/measurements.jsonl").read_text()
    assert command("flan-t5-glue", tmp_path, capsys)[0] == printed
    assert (tmp_path / "own/flan-t5-glue/measurements.jsonl").read_text() == lines


def test_losses_are_of_the_answers_tokens_alone(flan):
    model, tokens = flan
    asked, answers = ["red dog", "blue"], ["unacceptable", "not_equivalent yes"]
    given, right = (tokens(texts, padding=True, return_tensors="pt") for texts in (asked, answers))
    kept = ("input_ids", "attention_mask")
    with torch.no_grad():
        found = flan_t5_glue.mean_losses(model, {k: given[k] for k in kept}, {k: right[k] for k in kept})
        for text, answer, loss in zip(asked, answers, found, strict=True):
            labels = torch.tensor([tokens(answer)["input_ids"]])
            alone = model(input_ids=torch.tensor([tokens(text)["input_ids"]]), labels=labels).loss
            torch.testing.assert_close(loss, alone, rtol=1e-4, atol=1e-5)


# CLIP


def pictures(task: str, count: int = 7) -> list[dict]:
    draw = numpy.random.default_rng(len(task))
    sizes = [(20 + 3 * i, 16 + i) if i % 2 else (13, 9 + i) for i in range(count)]
    return [
        {"image": Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=numpy.uint8)), "label": i % 3}
        for i, (w, h) in enumerate(sizes)
    ]


@pytest.fixture
def clip(cache, monkeypatch):
    """A tiny CLIP and eight random adapters of its vision side, pickled as the published ones are."""
    monkeypatch.setattr(hub, "rows", lambda path, name, split, revision=None: pictures(path))
    few = {task: names[:3] for task, names in CLASSES.items()}
    monkeypatch.setattr(knots_vision, "CLASSES", few)
    base = repository(cache, knots_vision.BASE)
    texts = [template.format(name) for task in DATA for template in DATA[task].templates for name in few[task]]
    tokens = tokenizer(texts, base, start="<s>", end="</s>")
    torch.manual_seed(1)
    layers = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 1}
    vision = {"image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(
        text_config=layers | text | {"pad_token_id": 0}, vision_config=layers | vision, projection_dim=8
    )
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(base)
    for number, task in enumerate(DATA):
        folder = repository(cache, KnotsVision.adapter_id.format(task))
        adapter(copy.deepcopy(model.vision_model), folder, ("q_proj", "k_proj", "v_proj", "out_proj"), number)
        pickled(folder)
    return model, tokens, few


@torch.no_grad()
def slow_pictures(vision, clip, task: str) -> float:
    """A task's accuracy, picture by picture, prepared by CLIP's own processor."""
    model, tokens, few = clip
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = kind(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    means = []
    for name in few[task]:
        texts = [template.format(name) for template in DATA[task].templates]
        states = [model.text_model(input_ids=torch.tensor([tokens(text)["input_ids"]])).pooler_output for text in texts]
        units = [state / state.norm() for state in map(model.text_projection, states)]
        means.append(sum(units) / len(units))
    right = 0
    for row in pictures(DATA[task].path):
        pixels = processor(row["image"], return_tensors="pt")["pixel_values"]
        own = model.visual_projection(vision(pixel_values=pixels).pooler_output)
        scores = [float((own @ mean.T).squeeze() / (own.norm() * mean.norm())) for mean in means]
        right += scores.index(max(scores)) == row["label"]
    return 100 * right / len(pictures(DATA[task].path))


def test_clip_from_the_hub_to_the_table(clip, tmp_path, capsys):
    model, *_ = clip
    _, rows = command("knots-vision", tmp_path, capsys)
    own = {}
    for task in DATA:
        folder = hub.snapshot(KnotsVision.adapter_id.format(task))
        peft = PeftModel.from_pretrained(copy.deepcopy(model.vision_model), folder)
        own[task] = slow_pictures(peft, clip, task)
    assert len(set(own.values())) > 2
    assert rows["own adapters", ""][-2] == f"{fmean(own.values()):.1f}"
    peft = PeftModel.from_pretrained(copy.deepcopy(model.vision_model), merged(KnotsVision, tmp_path))
    shares = {
        task: 100 * slow_pictures(peft, clip, task) / own[task] if own[task] else None for task in DATA
    }  # where an adapter is never right there is nothing to divide by
    whole = None not in shares.values()
    assert rows["**saliency**", "untuned, rank 4"][2:] == [
        *("" if share is None else f"{share:.1f}" for share in shares.values()),
        "",
        f"{fmean(shares.values()):.1f}" if whole else "",
        "",
    ]


@pytest.mark.parametrize("size", [(9, 9), (40, 13), (13, 40), (8, 31), (33, 50)])
def test_a_picture_is_prepared_as_clips_processor_does(size):
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    plain = kind(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_rescale=False, do_normalize=False)
    pixels = numpy.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels[..., 0])):
        expected = numpy.asarray(plain(image, return_tensors="np")["pixel_values"][0])
        found = knots_vision.resized(image, 8)
        assert numpy.array_equal(found.transpose(2, 0, 1), expected)


def test_every_class_of_every_task_has_a_name_of_its_own():
    counts = {"stanford_cars": 196, "dtd": 47, "eurosat": 10, "gtsrb": 43, "mnist": 10, "resisc45": 45, "sun397": 397}
    assert {task: len(set(names)) for task, names in CLASSES.items()} == {**counts, "svhn": 10}
    assert list(CLASSES) == list(DATA)
    assert len(DATA["resisc45"].templates) == 18
    assert all(template.count("{}") == 1 for data in DATA.values() for template in data.templates)


# Llama


def sentences(path: str, count: int = 20) -> list[dict]:
    """Rows of any of the six data sets, some without a label."""
    draw = torch.Generator().manual_seed(len(path))
    words = ("red", "blue", "green", "dog", "cat", "runs")
    columns = {column for source in knots_nli.DATA.values() for column in source.columns}
    [classes] = [list(source.classes) for source in knots_nli.DATA.values() if source.path == path]
    rows = []
    for number in range(count):
        texts = {
            column: " ".join(words[int(i)] for i in torch.randint(6, (1 + number % 4,), generator=draw))
            for column in sorted(columns)
        }
        rows.append({**texts, "label": [*classes, -1][number % (len(classes) + 1)]})
    return rows


@pytest.fixture
def llama(cache, monkeypatch):
    """A tiny Llama and six random adapters with heads, pickled as the published ones are."""
    monkeypatch.setenv("SAMERGE_BENCHMARKS_DTYPE", "float32")
    monkeypatch.setattr(hub, "rows", lambda path, name, split, revision=None: sentences(path))
    base = repository(cache, knots_nli.BASE)
    tokens = tokenizer(["red blue green dog cat runs"], base, start="<s>")
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=len(tokens), initializer_range=0.5)
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    model.config.pad_token_id = 0
    for number, task in enumerate(knots_nli.DATA):
        folder = repository(cache, KnotsNli.adapter_id.format(task))
        adapter(copy.deepcopy(model), folder, ("q_proj", "k_proj", "v_proj", "o_proj"), number, "SEQ_CLS")
        pickled(folder)
    return model, tokens


@torch.no_grad()
def slow_sentences(model, tokens, head, task: str) -> float:
    """A task's accuracy, pair by pair, of a model without its head."""
    source = knots_nli.DATA[task]
    pairs = source.pairs(sentences(source.path))
    right = 0
    for first, second, label in pairs:
        ids = [2, *tokens(first, add_special_tokens=False)["input_ids"], 2]
        ids += tokens(second, add_special_tokens=False)["input_ids"]
        scores = (head @ model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]).tolist()
        right += max(source.classes.values(), key=lambda number, scores=scores: scores[number]) == label
    return 100 * right / len(pairs)


def test_llama_from_the_hub_to_the_table(llama, tmp_path, capsys):
    model, tokens = llama
    _, rows = command("knots-nli", tmp_path, capsys)
    one = KnotsNli(cache=tmp_path / "own")
    heads, own = {}, {}
    for task in knots_nli.DATA:
        folder = hub.snapshot(KnotsNli.adapter_id.format(task))
        peft = PeftModel.from_pretrained(copy.deepcopy(model), folder)
        heads[task] = next(
            p for name, p in peft.named_parameters() if name.endswith("score.modules_to_save.default.weight")
        )
        own[task] = slow_sentences(peft.base_model.model.model, tokens, heads[task], task)
        assert torch.equal(knots_nli.head(one.adapters()[task]), heads[task])
    assert len(set(own.values())) > 2
    assert rows["own adapters", ""][-2] == f"{fmean(own.values()):.1f}"
    peft = PeftModel.from_pretrained(copy.deepcopy(model), merged(KnotsNli, tmp_path))
    shares = [
        100 * slow_sentences(peft.base_model.model.model, tokens, heads[task], task) / own[task] if own[task] else None
        for task in own
    ]
    assert rows["**saliency**", "untuned, rank 4"][2:8] == ["" if share is None else f"{share:.1f}" for share in shares]


def test_an_adapter_without_its_head_is_refused(llama, tmp_path):
    folder = hub.snapshot(KnotsNli.adapter_id.format("rte"))
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    torch.save({name: value for name, value in tensors.items() if "lora_" in name}, folder / "adapter_model.bin")
    hub.copy_adapter(KnotsNli.adapter_id.format("rte"), tmp_path / "rte")
    with pytest.raises(ValueError, match="holds 0 heads, not one"):
        knots_nli.head(tmp_path / "rte")


def test_what_is_no_lora_adapter_is_refused(cache, tmp_path):
    torch.save({"base_model.model.x.weight": torch.zeros(2)}, repository(cache, "some/one") / "adapter_model.bin")
    with pytest.raises(ValueError, match="some/one holds no LoRA factors"):
        hub.copy_adapter("some/one", tmp_path / "own")


@pytest.mark.parametrize(("count", "aside"), [(10, 0.25), (5463, 0.2), (277, 0.5)])
def test_rows_put_aside_are_not_asked(count, aside):
    drawn, last = knots_nli.asked(count, aside, drawn=True), knots_nli.asked(count, aside, drawn=False)
    assert len(drawn) == len(set(drawn)) == len(last) == int((1 - aside) * count)
    assert last == sorted(last) != drawn
    assert set(drawn) < set(range(count))


def test_the_draw_is_that_of_the_datasets_library():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"place": list(range(277))})
    for drawn in (False, True):
        parts = rows.train_test_split(test_size=0.5, shuffle=drawn, seed=42)
        assert list(parts["train"]["place"]) == knots_nli.asked(277, 0.5, drawn)


# Published rows


@pytest.mark.parametrize("name", SUITES)
def test_published_means_are_those_of_their_scores(name):
    for row in PUBLISHED[name]:
        assert row.source in SOURCES
        if row.scores:
            assert len(row.scores) == len(SUITES[name].tasks)
            printed = fmean(row.scores) - (10 / 8 if "printed as 90.5" in row.note else 0)
            assert row.mean == pytest.approx(printed, abs=0.11), row


@pytest.mark.parametrize("name", SUITES)
def test_the_readme_has_every_table_with_its_columns_empty(name):
    assert table(SUITES[name], []) in README.read_text(encoding="utf-8")
    last = [line for line in table(SUITES[name], []).splitlines() if line.startswith("| **even**")]
    assert len(last) == 1
    assert set(last[0].split("|")[3:-1]) == {"  "}


def test_every_public_suite_can_be_run():
    import importlib

    for name, (module, kind) in PUBLIC.items():
        suite = getattr(importlib.import_module(module), kind)
        assert (suite.name, suite) == (name, SUITES[name])
        assert {row.merge for row in PUBLISHED[name]} >= {"own adapters"}
        assert all(isinstance(row, Row) for row in PUBLISHED[name])
