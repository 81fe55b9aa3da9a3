"""The texts of language modelling, and their losses, without a download."""

from __future__ import annotations

import gzip

import pytest
import torch
from suites.domains import DOMAINS, SHORTEST, Domain, manual, plain, web_page, windows
from suites.language import Language, losses, rows
from transformers import LlamaConfig, LlamaForCausalLM


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_manual_page_is_its_prose(tmp_path):
    page = '.TH X 1\n.\\" generated\nEine \\fBUnit\\fP\\-Datei\\&.\n.PP\nGer\\[u00E4]t\\~1\n'
    (tmp_path / "x.1.gz").write_bytes(gzip.compress(page.encode()))
    assert manual(tmp_path / "x.1.gz") == "Eine Unit-Datei. Ger\\[u00E4]t 1"


def test_a_web_page_is_what_it_shows(tmp_path):
    (tmp_path / "x.html").write_text(
        "<head><title>no</title></head><p>One   <b>two</b></p>\n\n<script>no</script>three"
    )
    assert web_page(tmp_path / "x.html") == "One two\nthree"


def test_documents_are_long_enough_once_and_split_whole(tmp_path):
    texts = [f"{i} " * SHORTEST for i in range(10)]
    for i, text in enumerate([*texts, texts[0], "short"]):
        (tmp_path / f"{i}.txt").write_text(text)
    domain = Domain("numbers", lambda package, cache: cache, "", "*.txt", plain)
    trained, held_out = domain.split(tmp_path)
    assert (len(trained), len(held_out)) == (7, 3)
    assert sorted([*trained, *held_out]) == sorted(texts)


def test_windows_are_whole_spread_and_no_more_than_allowed():
    found = list(windows(["abcdefghij", "xyz", "k" * 4], letters, 2, 3))
    assert [(n, "".join(map(chr, w))) for n, w in found] == [
        *((0, "ab"), (0, "ef"), (0, "ij"), (1, "xy"), (2, "kk"), (2, "kk")),
    ]


def test_few_rows_are_of_many_documents(monkeypatch):
    monkeypatch.setattr("suites.language.TOKENS", 2)
    ids, documents = rows(["abcd", "wxyz", "mn"], letters)
    assert documents.tolist() == [0, 1, 2, 0, 1]
    assert ["".join(map(chr, row)) for row in ids.tolist()] == ["ab", "wx", "mn", "cd", "yz"]


def test_a_loss_is_the_mean_of_every_next_tokens():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)).eval()
    ids = torch.randint(0, 40, (3, 7))
    with torch.no_grad():
        chances = model(ids).logits.double().softmax(dim=-1)
    for row, found in zip(range(3), losses(model, ids).tolist(), strict=True):
        each = [-float(chances[row, t, ids[row, t + 1]].log()) for t in range(6)]
        assert found == pytest.approx(sum(each) / 6, rel=1e-5)


def test_the_two_halves_are_all_domains():
    first, second = Language.parts()
    assert sorted([*first.tasks, *second.tasks]) == sorted(DOMAINS) == sorted(Language.tasks)
    assert len(first.tasks) == len(second.tasks)
