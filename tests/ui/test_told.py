"""What the page shows: every name and message is letters, never markup."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from samerge.merging.checking import AdapterReport
from samerge.methods.registry import available_methods
from samerge.parallel.progress import Progress
from samerge.ui import told, work
from samerge.ui.chosen import DEFAULT, density_of, named, offered, summary_of
from samerge.ui.places import Places

EVIL = '<img src=x onerror="window.ran=1">'


def test_adapters_of_any_name(places: Places, shelf: Path) -> None:
    for name in ("math", "code"):
        shutil.copytree(shelf / "loras" / name, shelf / f"{EVIL}{name}")
    found = work.look(places, "base", [f"{EVIL}math", f"{EVIL}code"], Progress(False))
    merged = work.merged(found, [1, 0.5], None, {}, Progress(False))
    again = work.merged(found, [1, 1], None, {}, Progress(False))
    shown = told.looked_over(found) + told.figures(again.report.record, merged.report.record)
    assert "<img" not in shown
    assert shown.count("&lt;") > 4
    wrong = told.looked_over(
        replace(found, conflicts=None, apart=EVIL, reports=(AdapterReport(EVIL, EVIL, problems=(EVIL,)),))
    )
    assert "<img" not in wrong
    assert wrong.count("&lt;") == 3
    assert "<img" not in told.notice(EVIL)


def test_what_changed(places: Places) -> None:
    found = work.look(places, "base", ["loras/math", "loras/code"], Progress(False))
    one, other = (work.merged(found, [1, w], None, {}, Progress(False)).report.record for w in (1, 0.5))
    rows = {row[0]: row[1:] for row in told.changes(one, other).rows}
    for name, row in rows.items():
        before, after = one.adapters[name], other.adapters[name]
        assert row[0] == ("1" if name == "math" else "1 \u2192 0.5")
        assert row[2] == f"{before.cosine:.2f} \u2192 {after.cosine:.2f}"
    assert f"norm {one.whole.norm:.3g} \u2192 {other.whole.norm:.3g};" in told.changes(one, other).note
    assert "Beside the merge before" in told.figures(other, one)
    assert "Beside the merge before" not in told.figures(other, None)
    less = work.merged(work.look(places, "base", ["loras/math"], Progress(False)), [1], None, {}, Progress(False))
    assert "Beside the merge before" not in told.figures(less.report.record, one)


def test_a_warning_is_shown(places: Places) -> None:
    found = work.look(places, "base", ["loras/math", "loras/code"], Progress(False))
    record = work.merged(found, [1, 1], None, {}, Progress(False)).report.record
    assert "<b>Warnings</b><ul><li>&lt;b&gt; is</li></ul>" in told.figures(replace(record, warnings=("<b> is",)), None)


@pytest.mark.parametrize("method", ["", *available_methods()])
def test_methods(method: str) -> None:
    assert summary_of(method).endswith((" reads the base.", " where there is one.", " reads no base."))
    assert summary_of(method) in told.about(method).replace("&#x27;", "'").replace("&lt;", "<").replace("&amp;", "&")
    assert named(method) == (method or None)


def test_densities() -> None:
    assert density_of("ties") == "Share of its elements that each adapter keeps. Empty: 0.2."
    assert density_of("linear") == ""
    assert density_of(DEFAULT) == density_of("saliency")
    assert [value for _, value in offered()] == [DEFAULT, *available_methods()]
