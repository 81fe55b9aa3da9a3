"""Partitions, and the place of a figure's choice among them."""

from __future__ import annotations

import itertools
import json

import pytest
import tables
from grouping import judged, partitions


def test_every_partition_is_there_once():
    found = [frozenset(map(frozenset, one)) for one in partitions(tuple("abcdef"), 2)]
    assert len(found) == len(set(found)) == 15
    assert all(sorted(itertools.chain(*one)) == list("abcdef") for one in found)
    assert len(list(partitions(tuple("abcdefgh"), 4))) == 35


def test_a_figure_that_knows_all_chooses_the_best_and_its_reverse_the_worst():
    tasks = tuple("abcd")
    harm = {frozenset(pair): float(n) for n, pair in enumerate(itertools.combinations(tasks, 2))}
    shares = {pair: dict.fromkeys(pair, 100 - harm[frozenset(pair)] ** 2) for pair in itertools.combinations(tasks, 2)}
    # ab|cd: 0 and 25, ac|bd: 1 and 16, ad|bc: 4 and 9
    told = judged(
        tasks,
        2,
        shares,
        {"squared": {k: v**2 for k, v in harm.items()}, "turned": {k: -(v**2) for k, v in harm.items()}},
    )
    assert (told["partitions"], told["least"], told["mean"], told["most"]) == (3, 87.5, 90.8, 93.5)
    assert told["rules"]["squared"] == {"score": 93.5, "place": 83, "spearman": 1.0}
    assert told["rules"]["turned"]["score"] == 87.5
    assert told["rules"]["turned"]["spearman"] == pytest.approx(-1.0)


def test_the_docs_say_what_was_measured():
    every = json.loads((tables.RESULTS / "grouping.json").read_text(encoding="utf-8"))
    found, alike = (row for row in every if row["groups of"] == 2)
    text = " ".join((tables.DOCS / "questions.md").read_text(encoding="utf-8").split())
    rules = found["rules"]
    assert f"all {found['partitions']} ways" in text
    assert (
        f"merges keep {found['least']} to {found['most']} % of what the adapters gain, {found['mean']} on the" in text
    )
    for name, words in (
        ("cosine", "mean cosine keep {}, those with the most {}"),
        ("rows", "inputs {}, with the most {}"),
        ("columns", "outputs (`samerge inspect A B` shows it) keep {}, those with the most {}"),
    ):
        assert words.format(rules[f"least {name}"]["score"], rules[f"most {name}"]["score"]) in text
    assert f"rank correlation with what is kept is {rules['most columns']['spearman']}" in text
    least, most = (alike["rules"][f"{name} columns"] for name in ("least", "most"))
    assert f"{least['score']} and {most['score']}, a correlation of {most['spearman']}" in text
