"""Files that stay open: what is read, from several threads, beyond the most that are open, and when they are closed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from samerge.weights import open_file
from samerge.weights.open_file import OpenFile

CONTENT = bytes(range(256)) * 1000


class Opener:
    """Opens a file, and counts how often."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(CONTENT)
        self.path, self.times = path, 0

    def __call__(self) -> BinaryIO:
        self.times += 1
        return open(self.path, "rb", buffering=0)


def read(file: OpenFile, opened: Callable[[], BinaryIO], start: int, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: file.read(memoryview(buffer), start, opened)])


def test_it_is_opened_once_and_read_by_threads_at_once(tmp_path):
    file, opened = OpenFile(), Opener(tmp_path / "x")
    places = [(997 * k % len(CONTENT), 13 * k) for k in range(300)]
    read(file, opened, 0, 1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: read(file, opened, *place), places))
    assert found == [CONTENT[start : start + count] for start, count in places]
    assert opened.times == 1


def test_without_reads_at_a_place_as_on_windows(tmp_path, monkeypatch):
    monkeypatch.delattr("os.preadv", raising=False)
    file, opened = OpenFile(), Opener(tmp_path / "x")
    assert read(file, opened, 300, 500) == CONTENT[300:800]
    assert read(file, opened, len(CONTENT) - 5, 50) == CONTENT[-5:]


def test_no_more_are_open_than_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(open_file, "MOST_OPEN", 3)
    openers = [Opener(tmp_path / str(n)) for n in range(5)]
    files = [OpenFile() for _ in openers]
    for _ in range(2):
        assert [read(file, opened, 2, 3) for file, opened in zip(files, openers, strict=True)] == [CONTENT[2:5]] * 5
        assert sum(file._descriptor is not None for file in files) <= 3
    assert all(opened.times == 2 for opened in openers)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc here")
def test_it_is_closed_with_the_object(tmp_path):
    def open_now() -> list[str]:
        return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]

    file, opened = OpenFile(), Opener(tmp_path / "x")
    read(file, opened, 0, 1)
    assert str(opened.path) in open_now()
    del file
    assert str(opened.path) not in open_now()
