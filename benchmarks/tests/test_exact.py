"""The tasks with exact answers, without a download."""

from __future__ import annotations

import datetime
import json
import random
import re

import pytest
import torch
from suites.exact import END, encode, told
from suites.exact_tasks import EXACT_TASKS, Task, dates, numerals, objects, order, sums
from transformers import LlamaConfig, LlamaForCausalLM


def some(make, count=50):
    rows = make(random.Random(0))
    return [next(rows) for _ in range(count)]


def test_answers_are_right():
    for asked, answer in some(sums):
        assert int(answer) == sum(map(int, re.findall(r"\d+", asked)))
    for asked, answer in some(dates):
        day = datetime.datetime.strptime(asked, "Write %B %d, %Y as numbers:")
        assert answer == f" {day.date().isoformat()}"
    for asked, answer in some(objects):
        found = json.loads(answer)
        assert list(found) == ["name", "age", "city", "job"]
        assert all(str(value) in asked for value in found.values())
    for asked, answer in some(order):
        assert answer.strip().split(", ") == sorted(re.findall(r"\w+", asked.removeprefix("Sorted by alphabet,"))[:3])


def test_roman_numerals_are_read_back():
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
    for asked, answer in some(numerals, 300):
        digits = [values[letter] for letter in answer.strip()]
        read = sum(-d if any(d < after for after in digits[i + 1 : i + 2]) else d for i, d in enumerate(digits))
        assert read == int(re.findall(r"\d+", asked)[0])
        assert not re.search(r"(.)\1{3}", answer)


@pytest.mark.parametrize("name", [name for name, task in EXACT_TASKS.items() if task.make is not None])
def test_no_row_is_both_trained_on_and_held_out(name, tmp_path):
    trained, held_out = EXACT_TASKS[name].rows(tmp_path)
    assert len(trained) + len(held_out) == EXACT_TASKS[name].count
    assert not {asked for asked, _ in trained} & {asked for asked, _ in held_out}
    assert (trained, held_out) == EXACT_TASKS[name].rows(tmp_path)


def test_languages_are_split_by_documents_and_none_is_in_both(monkeypatch, tmp_path):
    class Texts:
        def __init__(self, language):
            self.language = language

        def split(self, cache):
            own = [f"{self.language} {i} ".ljust(400, "x") * 3 for i in range(4)]
            licence = "licence " * 60
            return [*own[:2], licence], [*own[2:], licence]

    monkeypatch.setattr("suites.exact_tasks.DOMAINS", {name: Texts(name) for name in ("french", "german")})
    monkeypatch.setattr("suites.exact_tasks.LANGUAGES", {"french": "French", "german": "German"})
    trained, held_out = Task("languages").rows(tmp_path)
    assert (len(trained), len(held_out)) == (6, 4)
    assert {answer for _, answer in held_out} == {" French", " German"}


class Letters:
    """A tokeniser whose tokens are letters."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) % 40 for letter in text]}


def test_one_pass_tells_what_greedy_decoding_writes_and_its_loss():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, initializer_range=0.5, **sizes)).eval()
    questions = [[5, 9, 3], [7, 1, 1, 30, 2], [11], [4, 4]]
    rows = []
    for number, asked in enumerate(questions):
        written = model.generate(
            torch.tensor([asked]), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(asked) :].tolist()
        if number % 2:
            written[2] = (written[2] + 1) % 40
        rows.append((asked, written))
    with torch.inference_mode():
        losses, correct = told(model, rows)
        assert correct.tolist() == [True, False, True, False]
        for (asked, answer), loss in zip(rows, losses, strict=True):
            scores = model(torch.tensor([asked + answer])).logits[0].log_softmax(dim=1)
            own = [-scores[len(asked) - 1 + k, token] for k, token in enumerate(answer)]
            torch.testing.assert_close(loss, torch.stack(own).mean(), rtol=1e-4, atol=1e-5)


def test_an_answer_ends_with_the_line():
    ((asked, answer),) = encode(Letters(), [("ab", " c")])
    assert asked == [ord("a") % 40, ord("b") % 40]
    assert answer == [ord(" ") % 40, ord("c") % 40, ord(END) % 40]
