"""Packed masks in memory and in files, and the folder for the files."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from samerge.errors import OptionError
from samerge.saliency.element_masks import Masks
from samerge.saliency.work_folder import WorkFolder

CPU = torch.device("cpu")


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64, 65])
def test_round_trip_by_rows(tmp_path, columns, in_files):
    masks = Masks(tmp_path if in_files else None)
    kept = torch.rand(13, columns, generator=torch.Generator().manual_seed(columns)) < 0.4
    assert masks.rows(0, "w", 0, 13, CPU) is None
    assert masks.count(0, "w") is None
    masks.put(0, "w", ~kept)
    masks.put(1, "w", torch.ones_like(kept))
    masks.put(0, "w", kept)  # again: replaces
    for start, stop in ((0, 13), (0, 1), (12, 13), (3, 9)):
        rows = masks.rows(0, "w", start, stop, CPU)
        assert rows.dtype == torch.bool
        assert torch.equal(rows, kept[start:stop])
    assert masks.rows(1, "w", 2, 5, CPU).all()
    assert masks.count(0, "w") == int(kept.sum())
    assert masks.count(1, "w") == 13 * columns
    assert masks.rows(1, "other", 0, 1, CPU) is None
    assert masks.nbytes == 2 * 13 * -(-columns // 8)
    files = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert files == (masks.nbytes if in_files else 0)


def test_a_folder_is_removed_in_the_end(tmp_path):
    work = WorkFolder(tmp_path)
    (work.path / "x").write_text("x")
    assert work.path.parent.name == "samerge-work"
    path = work.path
    del work
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_runs_side_by_side_leave_each_other_alone(tmp_path):
    one = WorkFolder(tmp_path)
    two = WorkFolder(tmp_path)
    assert one.path != two.path
    assert one.path.is_dir()
    one.close()
    one.close()
    assert two.path.is_dir()
    two.close()


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    code = (
        "import sys; from samerge.saliency.work_folder import WorkFolder; w = WorkFolder(sys.argv[1]);"
        "(w.path / 'x').write_text('x'); print(w.path, flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], text=True, **pipes)
    with child:
        left = child.stdout.readline().strip()
        living = WorkFolder(tmp_path)
        assert os.path.exists(left)  # it lives
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert os.path.exists(left)
        after = WorkFolder(tmp_path)
        assert not os.path.exists(left)
        assert living.path.is_dir()
        assert after.path.is_dir()
        living.close()
        after.close()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match=r"work_dir=.* cannot be used: .*give a folder that can be written to"):
        WorkFolder(tmp_path / "file")


def test_the_folder_is_removed_at_the_end_of_python(tmp_path):
    code = "import sys; from samerge.saliency.work_folder import WorkFolder; w = WorkFolder(sys.argv[1]); sys.exit(3)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 3
    assert list(tmp_path.iterdir()) == []
