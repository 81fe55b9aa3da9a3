"""Files of results: what is new replaces what it is new of, and nothing else."""

from __future__ import annotations

import json

import records


def test_a_record_replaces_the_one_with_its_settings(tmp_path):
    path = tmp_path / "found.json"
    first, other, again = ({"suite": s, "rank": r, "score": x} for s, r, x in (("a", 1, 5), ("a", 2, 6), ("a", 1, 7)))
    for record in (first, other, again):
        records.write(path, records.replaced(path, record, ("suite", "rank")))
    assert json.loads(path.read_text(encoding="utf-8")) == [other, again]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4
