"""The card says what the record says, and nothing of the user's folders."""

import dataclasses
import os

import pytest
import yaml
from huggingface_hub import ModelCard

from samerge.report.card import model_card
from samerge.report.stored import Base, Input

from .records import LAYERS, RECORD


def changed(**changes):
    return dataclasses.replace(RECORD, **changes)


def metadata(card):
    start, header, body = card.split("---\n", 2)
    assert start == ""
    assert body.startswith("\n# Merged")
    return yaml.safe_load(header)


def rows(card, section):
    """The cells of the table of a section, without its header."""
    lines = card.split(f"## {section}\n\n")[1].split("\n\n")[0].splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    return [
        [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")]
        for line in lines[2:]
    ]


class TestMetadata:
    def test_it(self):
        assert metadata(model_card(RECORD)) == {
            "base_model": "ada/llama-tiny",
            "base_model_relation": "adapter",
            "library_name": "peft",
            "tags": ["peft", "lora", "merge", "samerge"],
        }

    def test_huggingface_hub_reads_it(self):
        card = ModelCard(model_card(RECORD))
        assert card.data.base_model == "ada/llama-tiny"
        assert card.data.library_name == "peft"
        assert card.text.strip().startswith("# Merged: math + co")

    @pytest.mark.parametrize(
        "name",
        ["/home/ada/secret/llama-x", "./secret/llama-x", "secret/deep/llama-x/", "C:\\secret\\llama-x", "~/llama-x"],
    )
    def test_a_local_base_is_named_by_its_last_part(self, name):
        card = model_card(changed(base=Base(name, "llama")))
        assert metadata(card) == {"library_name": "peft", "tags": ["peft", "lora", "merge", "samerge"]}
        assert "of `llama-x` (from a local folder)" in card
        assert 'from_pretrained("path/to/llama-x")' in card
        assert not any(word in card for word in ("secret", "home", "C:", "~"))

    def test_a_folder_that_looks_like_an_id(self, tmp_path, monkeypatch):
        (tmp_path / "secret" / "llama-x").mkdir(parents=True)
        record = changed(
            base=Base("secret/llama-x"), warnings=("secret/llama-x, not: nosecret/llama-x secret/llama-x2",)
        )
        assert metadata(model_card(record))["base_model"] == "secret/llama-x"
        monkeypatch.chdir(tmp_path)
        card = model_card(record)
        assert "base_model" not in metadata(card)
        assert "- llama-x, not: nosecret/llama-x secret/llama-x2" in card

    def test_what_was_read_from_the_hub_is_of_the_hub_wherever_the_card_is_made(self, tmp_path, monkeypatch):
        record = changed(
            base=Base("ada/llama", local=()), inputs=(Input("math", "ada/math", local=()), RECORD.inputs[1])
        )
        before = model_card(record)
        (tmp_path / "ada" / "llama").mkdir(parents=True)
        (tmp_path / "ada" / "math").mkdir()
        monkeypatch.chdir(tmp_path)
        assert metadata(before)["base_model"] == "ada/llama"
        assert "[ada/math](https://huggingface.co/ada/math)" in before
        assert model_card(record) == before

    @pytest.mark.parametrize("name", [None, ""])
    def test_without_a_base(self, name):
        card = model_card(changed(base=Base(name)))
        assert "base_model" not in metadata(card)
        assert "One LoRA adapter, merged from 2: `math`" in card


class TestText:
    def test_the_method_and_the_result(self):
        card = model_card(RECORD)
        assert "arxiv.org/abs/2606.00511" in card
        assert "The result: rank 16, 2 modules, 123,456 parameters, float16." in card

    def test_any_method_of_the_registry(self):
        assert "The method `ties` of samerge: trim by magnitude" in model_card(changed(method="ties"))
        assert "The method `of-a-plugin` of samerge." in model_card(changed(method="of-a-plugin"))

    def test_the_balance_comes_first(self):
        card = model_card(changed(options={"balance": "norm"}, method="linear"))
        assert "brought to their mean norm there, so that each has one voice. The weighted sum" in card
        assert "mean norm" not in model_card(changed(options={"balance": "none"}))

    def test_how_to_load_it(self):
        code = model_card(RECORD).split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        assert 'base = AutoModelForCausalLM.from_pretrained("ada/llama-tiny")' in code
        assert 'model = PeftModel.from_pretrained(base, "path/or/repository-of-this-adapter")' in code

    def test_a_model_has_its_own_class(self):
        whole = dataclasses.replace(RECORD.output, kind="model", rank=None, task_type=None)
        for base, line in (
            (Base("a/b", "bert", "BertForMaskedLM"), "from transformers import BertForMaskedLM"),
            (Base("a/b", "UNet2DConditionModel", "UNet2DConditionModel"), "from diffusers import UNet2DConditionModel"),
            (Base("a/b", "t5"), "from transformers import AutoModelForSeq2SeqLM"),
        ):
            card = model_card(changed(base=base, output=whole, method="bake"))
            assert f"{line}\n" in card
            assert f"library_name: {line.split()[1]}\n" in card
        card = model_card(changed(base=Base("a/b", "UNet2DConditionModel", "UNet2DConditionModel")))
        assert "from diffusers import UNet2DConditionModel\n" in card

    @pytest.mark.parametrize(
        ("kind", "task", "expected"),
        [
            ("llama", None, "AutoModelForCausalLM"),
            (None, None, "AutoModelForCausalLM"),
            ("bert", None, "AutoModel"),
            ("t5", None, "AutoModelForSeq2SeqLM"),
            ("bert", "SEQ_CLS", "AutoModelForSequenceClassification"),
            ("llama", "FEATURE_EXTRACTION", "AutoModel"),
        ],
    )
    def test_the_class_to_load_it_into(self, kind, task, expected):
        import transformers

        card = model_card(changed(base=Base("a/b", kind), output=dataclasses.replace(RECORD.output, task_type=task)))
        assert f"from transformers import {expected}\n" in card
        assert f"base = {expected}.from_pretrained(" in card
        assert hasattr(transformers, expected)

    def test_the_inputs(self):
        assert rows(model_card(RECORD), "Adapters") == [
            ["`math`", "[ada/math-lora](https://huggingface.co/ada/math-lora)", "1", "16", "`ab12ab12ab12`"],
            ["`co|de`", "[bob/code-lora](https://huggingface.co/bob/code-lora)", "0.8", "8", ""],
        ]

    def test_local_inputs_are_named_by_their_last_part_wherever_they_are(self):
        record = changed(
            inputs=(Input("math", "./secret/math-lora"), RECORD.inputs[1]),
            options={"connectivity": "/secret/graph.json", "device": "cpu"},
            warnings=("./secret/math-lora has a bias", f"{os.path.abspath('secret/math-lora')}: read twice"),
        )
        card = model_card(record)
        assert "secret" not in card
        assert rows(card, "Adapters")[0] == ["`math`", "`math-lora`", "1", "", ""]
        assert rows(card, "Configuration") == [["`connectivity`", "`graph.json`"], ["`device`", "`cpu`"]]
        assert "- math-lora has a bias\n- math-lora: read twice" in card

    def test_the_options_are_sorted(self):
        assert rows(model_card(RECORD), "Configuration") == [
            ["`connectivity`", "`flow`"],
            ["`density`", "`0.1`"],
            ["`svd_rank`", "`None`"],
        ]

    def test_what_became_of_the_adapters(self):
        card = model_card(RECORD)
        assert rows(card, "What became of the adapters") == [
            ["`math`", "1", "2.24", "2", "1.41", "4/32", "80.0%", "0.60", "0.55"],
            ["`co|de`", "0.8", "3", "1", "1.00", "2/8", "50.0%", "0.17", "1.10"],
        ]
        assert "Truncation lost 18.8% of the merged update's energy, 25.0% in model.layers.0.q" in card
        assert "Outside the flow graph: 1 of 2 modules." in card
        assert "A note." in card
        for column in ("weight", "norm", "balance", "kept", "energy kept", "cosine", "interference"):
            assert f"\n- {column}: " in card

    def test_nothing_lost_nothing_outside(self):
        card = model_card(changed(layers={"two": LAYERS["model.layers.1.q"]}))
        assert "lost" not in card
        assert "Outside" not in card

    def test_warnings_and_provenance(self):
        card = model_card(RECORD)
        assert "## Warnings\n\n- the adapter 'math' has a bias\n" in card
        assert "Made with samerge 0.2.0 on 2026-01-02T03:04:05Z (python 3.12, torch 2.9)." in card
        assert "## Warnings" not in model_card(changed(warnings=()))


def test_the_same_record_the_same_card():
    options, versions = (dict(reversed(one.items())) for one in (RECORD.options, RECORD.versions))
    assert model_card(changed(options=options, versions=versions)) == model_card(RECORD)
    assert model_card(RECORD).endswith("`samerge.json`.\n")


def test_no_network(monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("it looked up a host"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it opened a connection"))
    model_card(RECORD)
