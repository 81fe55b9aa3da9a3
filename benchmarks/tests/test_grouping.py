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
    by = {row["suite"]: row for row in every if row["groups of"] == 2}
    text = " ".join((tables.DOCS / "questions.md").read_text(encoding="utf-8").split())
    own, alike, domains = (by[name] for name in ("minilm", "minilm-same-init", "language"))
    overlap = {name: row["rules"]["most columns"]["spearman"] for name, row in by.items()}
    assert f"merges keep {own['least']} to {own['most']} % of what the MiniLM adapters" in text
    least, most = (own["rules"][f"{name} columns"]["score"] for name in ("least", "most"))
    assert f"shows it) keep {least}, those with the most {most}, and" in text
    assert (
        f"what is kept is {overlap['minilm']}. With adapters that started alike it is {overlap[alike['suite']]}" in text
    )
    assert f"text {overlap['language']:+}: there the pairs" in text
    assert f"keep most, of {domains['least']} to {domains['most']}." in text
    for figure in ("cosine", "rows", "sign_conflict"):
        signs = {row["rules"][f"most {figure}"]["spearman"] > 0 for row in by.values()}
        assert signs == {True, False}, figure
