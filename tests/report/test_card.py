"""The card says what the record says, and nothing of the user's folders."""

import copy
import os

import pytest
import yaml
from huggingface_hub import ModelCard

from samerge.report.card import model_card

RECORD = {
    "samerge": "0.1.0",
    "created": "2026-01-02T03:04:05Z",
    "method": "saliency",
    "recipe": "paper",
    "base": {"name": "ada/llama-tiny", "model_type": "llama"},
    "inputs": [
        {
            "name": "math",
            "source": "ada/math-lora",
            "weight": 1.0,
            "rank": 16,
            "sha256": {"x.safetensors": "ab12" * 16},
        },
        {"name": "co|de", "source": "bob/code-lora", "weight": 0.8, "rank": 8, "sha256": None},
    ],
    "options": {"svd_rank": None, "density": 0.1, "connectivity": "flow"},
    "versions": {"torch": "2.9", "python": "3.12"},
    "output": {"rank": 16, "dtype": "float16", "modules": 2, "parameters": 123456},
    "layers": {
        "one": {
            "experts": {
                "co|de": {"components": 8, "kept": [0, 5], "energy": 0.5},
                "math": {"components": 16, "kept": [0, 1, 3], "energy": 0.9},
            },
            "lost": 0.0125,
            "outside": True,
        },
        "two": {"experts": {"math": {"components": 16, "kept": [2], "energy": 0.4}}, "lost": 0.0, "outside": False},
    },
    "log_connectivity": {"math": 12.5},
    "timings": {"read": 0.5},
    "warnings": ["the adapter 'math' has a\nbias"],
}


def changed(**changes):
    return {**copy.deepcopy(RECORD), **changes}


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
        card = model_card(changed(base={"name": name, "model_type": "llama"}))
        assert metadata(card) == {"library_name": "peft", "tags": ["peft", "lora", "merge", "samerge"]}
        assert "of `llama-x` (from a local folder)" in card
        assert 'from_pretrained("path/to/llama-x")' in card
        assert not any(word in card for word in ("secret", "home", "C:", "~"))

    def test_a_folder_that_looks_like_an_id(self, tmp_path, monkeypatch):
        (tmp_path / "secret" / "llama-x").mkdir(parents=True)
        record = changed(
            base={"name": "secret/llama-x"}, warnings=["secret/llama-x, not: nosecret/llama-x secret/llama-x2"]
        )
        assert metadata(model_card(record))["base_model"] == "secret/llama-x"
        monkeypatch.chdir(tmp_path)
        card = model_card(record)
        assert "base_model" not in metadata(card)
        assert "- llama-x, not: nosecret/llama-x secret/llama-x2" in card

    @pytest.mark.parametrize("base", [None, {}, {"name": None}, {"name": ""}])
    def test_without_a_base(self, base):
        card = model_card(changed(base=base))
        assert "base_model" not in metadata(card)
        assert "One LoRA adapter, merged from 2: `math`" in card


class TestText:
    def test_the_method_and_the_result(self):
        card = model_card(RECORD)
        assert "arxiv.org/abs/2606.00511" in card
        assert "recipe `paper`" in card
        assert "The result: rank 16, 2 modules, 123,456 parameters, float16." in card
        assert "recipe" not in model_card(changed(recipe=None))

    def test_any_method_of_the_registry(self):
        assert "The method `ties` of samerge." in model_card(changed(method="ties"))

    def test_how_to_load_it(self):
        code = model_card(RECORD, repo_id="ada/merged").split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        assert 'base = AutoModelForCausalLM.from_pretrained("ada/llama-tiny")' in code
        assert 'model = PeftModel.from_pretrained(base, "ada/merged")' in code
        assert "repository-of-this-adapter" in model_card(RECORD)

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

        card = model_card(changed(base={"name": "a/b", "model_type": kind}, output={"task_type": task}))
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
            inputs=[{"name": "math", "source": "./secret/math-lora"}],
            options={"connectivity": "/secret/graph.json", "device": "cpu"},
            warnings=["./secret/math-lora has a bias", f"{os.path.abspath('secret/math-lora')}: read twice"],
        )
        card = model_card(record)
        assert "secret" not in card
        assert rows(card, "Adapters") == [["`math`", "`math-lora`", "", "", ""]]
        assert rows(card, "Configuration") == [["`connectivity`", "`graph.json`"], ["`device`", "`cpu`"]]
        assert "- math-lora has a bias\n- math-lora: read twice" in card

    def test_the_options_are_sorted(self):
        assert rows(model_card(RECORD), "Configuration") == [
            ["`connectivity`", "`flow`"],
            ["`density`", "`0.1`"],
            ["`svd_rank`", "`None`"],
        ]

    def test_what_was_kept(self):
        card = model_card(RECORD)
        assert rows(card, "What was kept") == [
            ["`math`", "2", "4 of 32", "65.0%", "12.5"],
            ["`co|de`", "1", "2 of 8", "50.0%", ""],
        ]
        assert "at most 1.25% of a module's energy" in card
        assert "Outside the flow graph, ranked by agreement alone: 1 of 2 modules." in card

    def test_an_expert_that_is_no_input_is_not_dropped(self):
        card = model_card(changed(inputs=[{"name": "co|de"}]))
        assert [row[0] for row in rows(card, "What was kept")] == ["`co|de`", "`math`"]

    def test_nothing_lost_nothing_outside(self):
        layers = {"two": RECORD["layers"]["two"]}
        card = model_card(changed(layers=layers))
        assert "lost" not in card
        assert "Outside" not in card

    def test_warnings_and_provenance(self):
        card = model_card(RECORD)
        assert "## Warnings\n\n- the adapter 'math' has a bias\n" in card
        assert "Made with samerge 0.1.0 on 2026-01-02T03:04:05Z (python 3.12, torch 2.9)." in card
        assert "## Warnings" not in model_card(changed(warnings=[]))


def test_the_same_record_the_same_card():
    shuffled = {key: RECORD[key] for key in reversed(RECORD)}
    shuffled["options"] = dict(reversed(RECORD["options"].items()))
    shuffled["versions"] = dict(reversed(RECORD["versions"].items()))
    assert model_card(shuffled) == model_card(RECORD)
    assert model_card(RECORD).endswith("`samerge.json`.\n")


def test_the_record_is_not_changed():
    record = copy.deepcopy(RECORD)
    model_card(record)
    assert record == RECORD


@pytest.mark.parametrize("missing", sorted(RECORD))
def test_each_key_may_be_missing(missing):
    card = model_card({key: value for key, value in RECORD.items() if key != missing})
    assert metadata(card)["library_name"] == "peft"
    assert "None" not in card.replace("`None`", "")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"inputs": [{}]},
        {"layers": {"one": {}}},
        {"layers": {"one": {"experts": {"a": {}}}}},
        {"output": {"rank": 1}},
    ],
)
def test_a_poor_record(record):
    card = model_card(record)
    assert metadata(card)["tags"] == ["peft", "lora", "merge", "samerge"]
    assert "from_pretrained" in card


def test_no_network(monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("it looked up a host"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it opened a connection"))
    model_card(RECORD)
