"""Every table of the docs that a benchmark writes is what its results render to, and so are the figures in words."""

from __future__ import annotations

import json
import re

import figures
import foretell
import full
import peft_tests
import processes
import pytest
import releases
import signs
import speed
import tables
import traffic
from evidence.foretold import orders
from evidence.store import load


def results(name: str):
    return json.loads((tables.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def words(page: str) -> str:
    """A page on one line."""
    return " ".join((tables.DOCS / page).read_text(encoding="utf-8").split())


def gpu_code() -> str:
    """The machine code is counted with Triton, and its script does not load without it."""
    pytest.importorskip("triton")
    import gpu_code

    return gpu_code.table(results("gpu_code"))


TABLES = {
    "full.py": (full.DOC, lambda: full.table(results("full"))),
    "gpu_code.py": (tables.DOCS / "gpu.md", gpu_code),
    "peft_tests.py": (peft_tests.DOC, lambda: peft_tests.table(results("peft_tests"))),
    "speed.py": (speed.DOC, lambda: speed.table(results("speed"))),
    "signs.py": (signs.DOC, lambda: signs.table(results("signs"))),
    "processes.py": (processes.DOC, lambda: processes.table(results("processes"))),
    "releases.py": (releases.DOC, lambda: releases.table(results("releases"))),
    "traffic.py": (traffic.DOC, traffic.table),
    "foretell.py": (foretell.DOC, foretell.table),
    **{
        f"figures.py {name}": (tables.DOCS / page, lambda name=name: figures.table(name, results("figures")[name]))
        for name, (page, *_) in figures.FIGURES.items()
    },
}


@pytest.mark.parametrize("script", TABLES)
def test_a_table_is_what_its_results_render_to(script):
    page, table = TABLES[script]
    assert tables.shown(page, script) == table()


def test_what_figures_foretell_is_of_the_committed_scores():
    scores = load((tables.RESULTS / "quality.json").read_text(encoding="utf-8"))
    assert results("foretell") == orders(scores)


def test_no_marked_table_is_forgotten():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.DOCS.glob("*.md"))
    assert set(re.findall(r"<!-- table: benchmarks/(.*?) -->", text)) == set(TABLES)
    assert text.count(tables.END) == len(TABLES)


def test_what_is_said_of_speed_is_in_its_table():
    """docs/speed.md, *What the table says*."""
    told = words("speed.md")
    by = {(r["model"], r["adapters"], r["side"], r["iterations"]): r for r in results("speed")}

    def one(model: str, iterations: int | None, side: str = "samerge", count: int = 8):
        return by[model, count, side, iterations]

    faster, share = [], []
    for model in ("llama-1b", "llama-1b-1"):
        ours, naive = one(model, 2), one(model, 2, "naive")
        faster.append(f"{naive['seconds'] / ours['seconds']:.1f} times")
        share.append(f"{ours['peak_rss_mib'] / naive['peak_rss_mib']:.0%}".replace("%", " %"))
    assert f"{faster[0]} faster on the whole of `llama-1b` (two iterations of both), {faster[1]} on one of" in told
    assert f"in {share[0]} and {share[1]} of its memory" in told
    near = [one("llama-1b", 1), one("llama-1b", 10), one("llama-8b", 1)]
    first, ten, large = (f"{r['ratio_to_floor']:.1f} times" for r in near)
    assert f"{first} for one iteration on `llama-1b`, {ten} for ten, {large} on `llama-8b`" in told
    small = by["smollm2", 6, "samerge", 10], one("minilm", 10)
    assert "({:.1f} and {:.1f} times)".format(*(r["ratio_to_floor"] for r in small)) in told
    assert f"takes MiniLM {small[1]['seconds'] - small[1]['scoring_seconds']:.1f} s" in told
    files, peak = (near[2][key] / 1024 for key in ("base_mib", "peak_rss_mib"))
    assert f"`llama-8b`, {files:.0f} GiB of files, takes {peak:.1f} GiB" in told
    each = [one("llama-1b-1", 2, count=count)["seconds"] / count for count in (64, 256)]
    assert f"64 take {each[0]:.3f} s each on one layer, 256 take {each[1]:.3f} s each" in told


def test_bounds_of_the_gpu_follow_from_the_counted_instructions():
    """docs/gpu.md: instructions for a weight and an expert, 8 experts, over what an H100 can issue."""
    weights, rate = 6.98e9, 132 * 4 * 32 * 1.98e9
    lines = [line for line in (tables.DOCS / "gpu.md").read_text(encoding="utf-8").splitlines() if "at least" in line]
    for products in ("ieee", "tf32x3", "bf16x3"):
        codes = [c for c in results("gpu_code")["codes"] if (c["arch"], c["products"]) == (90, products)]
        count = sum(c["instructions"] for c in codes if c["sweep"] in ("forward", "backward"))
        milliseconds = 1e3 * count * 8 * weights / rate
        [line] = [line for line in lines if line.startswith(f"| `{products}`")]
        assert float(line.split("|")[-3]) == pytest.approx(milliseconds, rel=0.02)
