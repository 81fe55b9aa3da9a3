"""Climbing to a merge's best strength: it ends, and finds what the whole grid would say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from evidence.climb import _gains, peaks
from evidence.runs import settings
from evidence.scores import pack
from evidence.table import FAMILIES
from suites.base import Part
from suites.kept import Kept


def line(key, losses: dict[str, float]) -> dict:
    return {"key": list(key), "losses": {task: pack(torch.full((4,), value)) for task, value in losses.items()}}


@pytest.mark.parametrize(
    "peak", [{"a": 0.4, "b": 0.4}, {"a": 1.0, "b": 1.1}, {"a": 0.7, "b": 2.5}, {"a": 3.0, "b": 1.4}]
)
@pytest.mark.parametrize("name", ["tsv", "pcb", "robustmerge"])
def test_every_part_ends_at_the_best_of_its_whole_grid(peak, name):
    parts = [Part("first", ("a",), judge=False), Part("second", ("b",), judge=True)]
    grid = [one for one in settings(FAMILIES, name, ["r"]) if isinstance(one.scaling, float)]
    lines = [line(("base",), {"a": 4.0, "b": 4.0}), *(line((f"expert {t}",), {t: 1.0}) for t in peak)]

    def losses(setting) -> dict[str, float]:
        return {task: 2 + (setting.scaling - at) ** 2 for task, at in peak.items()}

    asked = []
    while missing := peaks(lines, parts, grid):
        assert not {one.key() for one in missing} & set(asked)
        asked += [one.key() for one in missing]
        lines += [line(one.key(), losses(one)) for one in missing]
    assert asked[0] == next(one.key() for one in grid if one.published)
    for task in peak:
        best = min(grid, key=lambda one: losses(one)[task])
        assert best.key() in asked
    for setting in grid:  # what was left out lies beyond a strength that is worse than the best
        assert setting.key() in asked or min(abs(setting.scaling - at) for at in peak.values()) > 0.3


def test_a_task_whose_adapter_gains_nothing_does_not_count():
    parts = [Part("whole", ("a", "b"), judge=True)]
    grid = [one for one in settings(FAMILIES, "tsv", ["r"]) if isinstance(one.scaling, float)]
    lines = [line(("base",), {"a": 4.0, "b": 4.0}), line(("expert a",), {"a": 1.0}), line(("expert b",), {"b": 3.99})]
    lines += [
        line(one.key(), {"a": 2 + abs(one.scaling - 0.5), "b": 4 - one.scaling}) for one in grid if one.scaling <= 1
    ]
    assert peaks(lines, parts, grid) == []
    assert peaks(lines[:3], parts, []) == []


@pytest.mark.parametrize("least", [0.05, 0.6])
def test_which_tasks_have_a_score_is_decided_in_one_place(least, monkeypatch):
    monkeypatch.setattr("evidence.scores.LEAST", least)
    one = SimpleNamespace(base=lambda: None, adapters=lambda: {"a": "a"}, evaluator=lambda: None)
    monkeypatch.setattr("suites.kept.single", lambda folder: folder)
    monkeypatch.setattr(Kept, "_loss", lambda self, update, task: 4.0 if update is None else 2.0)
    scored = least * 4.0 <= 4.0 - 2.0
    assert bool(Kept(one, 4, ["a"]).ends) == scored
    grid = [setting for setting in settings(FAMILIES, "tsv", ["r"]) if isinstance(setting.scaling, float)]
    known = {("base",): line(("base",), {"a": 4.0}), ("expert a",): line(("expert a",), {"a": 2.0})}
    assert bool(_gains(known, Part("whole", ("a",), judge=True))(line(grid[0].key(), {"a": 3.0}))[1]) == scored
