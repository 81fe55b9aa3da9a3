"""SIGKILL in the middle: no output folder, and the next run removes what was left in the work folder."""

import signal
import subprocess
import sys

import samerge

CHILD = """
import sys
import samerge
from samerge.saliency.element_masks import Masks
from samerge.full.assembly import Assembly
base, out, work, when, *experts = sys.argv[1:]
if when == "pruning":
    put = Masks.put
    def slow(self, *given):
        put(self, *given)
        print("now", flush=True)
        sys.stdin.read()
    Masks.put = slow
else:
    tiles = Assembly.tiles
    def slow(self, tensor):
        yield from tiles(self, tensor)
        print("now", flush=True)
        sys.stdin.read()
    Assembly.tiles = slow
samerge.merge_full(base, experts, iterations=1, work_dir=work, progress=False).save(out)
"""


def test_killed(llama, tmp_path):
    for when in ("pruning", "writing"):
        out, work = tmp_path / when / "merged", tmp_path / "work"
        words = [sys.executable, "-c", CHILD, llama.base, out, work, when, *llama.experts.values()]
        with subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout.readline() == "now\n"
            assert list(work.rglob("*.bits"))
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert not out.exists()
        left = list(work.rglob("*.bits"))
        assert left
        merged = samerge.merge_full(llama.base, llama.experts, iterations=1, work_dir=work, progress=False)
        assert not any(path.exists() for path in left)
        merged.save(out)
        assert (out / "config.json").exists()
        merged.close()
        assert list(work.iterdir()) == []
