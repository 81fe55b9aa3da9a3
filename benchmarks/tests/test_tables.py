"""Every table of the docs that a benchmark writes is what its results render to, and so are the figures in words."""

from __future__ import annotations

import json
import re

import decorrelation
import figures
import full
import peft_tests
import processes
import pytest
import releases
import signs
import speed
import strength
import tables
import traffic


def results(name: str):
    return json.loads((tables.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def gpu_code() -> str:
    """The machine code is counted with Triton, and its script does not load without it."""
    pytest.importorskip("triton")
    import gpu_code

    return gpu_code.table(results("gpu_code"))


TABLES = {
    "full.py": (full.DOC, lambda: full.table(results("full"))),
    "gpu_code.py": (tables.DOCS / "gpu.md", gpu_code),
    "peft_tests.py": (peft_tests.DOC, lambda: peft_tests.table(results("peft_tests"))),
    "decorrelation.py": (decorrelation.DOC, lambda: decorrelation.table(results("decorrelation"))),
    "speed.py": (speed.DOC, lambda: speed.table(results("speed"))),
    "signs.py": (signs.DOC, lambda: signs.table(results("signs"))),
    "strength.py": (strength.DOC, lambda: strength.table(results("strength"))),
    "processes.py": (processes.DOC, lambda: processes.table(results("processes"))),
    "releases.py": (releases.DOC, lambda: releases.table(results("releases"))),
    "traffic.py": (traffic.DOC, traffic.table),
    **{
        f"figures.py {name}": (tables.DOCS / page, lambda name=name: figures.table(name, results("figures")[name]))
        for name, (page, *_) in figures.FIGURES.items()
    },
}


@pytest.mark.parametrize("script", TABLES)
def test_a_table_is_what_its_results_render_to(script):
    page, table = TABLES[script]
    assert tables.shown(page, script) == table()


def test_no_marked_table_is_forgotten():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.DOCS.glob("*.md"))
    assert set(re.findall(r"<!-- table: benchmarks/(.*?) -->", text)) == set(TABLES)
    assert text.count(tables.END) == len(TABLES)


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
