"""Broken folders by the hundred: refused in words, or merged as they should be; never more than that."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_zoo import make_zoo
from fuzzing import offline, outcome

CASES, CHUNK = 500, 25


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_no_broken_folder_is_taken_for_a_sound_one(sound: Path, tmp_path: Path, first: int) -> None:
    with offline():
        found = [outcome(number, sound, tmp_path) for number in range(first, first + CHUNK)]
    assert [f"{one.kind}: {one.words}" for one in found if not one.sound] == []
