"""The typed keyword arguments are what the option tables say."""

from __future__ import annotations

import pytest
from render_keywords import SOURCE, full_keywords, merge_keywords

pytest.importorskip("ruff")


def test_those_of_merge() -> None:
    assert (SOURCE / "methods" / "keywords.py").read_text() == merge_keywords()


def test_those_of_merge_full() -> None:
    assert (SOURCE / "full" / "full_keywords.py").read_text() == full_keywords()
