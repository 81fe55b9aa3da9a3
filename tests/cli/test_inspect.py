from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from report.test_page import Page

from samerge.report.by_layer import layer_types, worst_layers
from samerge.report.facts import number
from samerge.report.stored import AdapterInLayer, LayerRecord

from .conftest import shell


@pytest.fixture
def merged(invoke, tiny_base, loras):
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "-a", f"{loras / 'far'}:0.5", "-o", "merged", "--json")
    assert invoke(*words, "--method", "paper", "--density", 0.5).exit_code == 0
    return "merged"


def test_inspect_shows_from_whom_where_and_what_was_lost(invoke, merged) -> None:
    result = invoke("inspect", merged)
    assert result.exit_code == 0
    for words in (
        *("tiny-llama (llama)", "method:  paper", "rank 4, 6 modules", "Where they came from"),
        *("By type of layer", "model.layers.*.mlp.down_proj", "Layers that lost most", "model.layers.0.mlp.down_proj"),
    ):
        assert words in result.stdout
    assert "different bases" in result.stderr


def test_inspect_json(invoke, merged) -> None:
    told = json.loads(invoke("inspect", merged, "--json", "--worst", 1).stdout)
    assert list(told["adapters"]) == ["math", "far"]
    assert [row["type"] for row in told["layer_types"]] == [
        "model.layers.*.mlp.down_proj",
        "model.layers.*.self_attn.q_proj",
    ]
    assert 0 < told["whole"]["sign_conflict_after"] < 1
    assert told["layer_types"][0]["kept_of"] == {"math": 4, "far": 4}
    assert len(told["worst_layers"]) == 1
    assert told["inputs"][1]["weight"] == 0.5
    assert "layers" not in told


def test_inspect_shows_sign_conflicts_and_draws_what_was_kept(invoke, tiny_base, loras, tmp_path) -> None:
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "-a", loras / "code", "-o")
    for folder, method in (("pruned", "paper"), ("whole", "linear")):
        assert invoke(*words, folder, "--method", method).exit_code == 0
        result = invoke("inspect", folder, "--picture", f"{folder}.png")
        assert result.exit_code == 0, result.stderr
        assert ("Opposite signs" in result.stdout) == (method == "paper")
        assert (tmp_path / f"{folder}.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_of_what_is_not_ours(invoke, loras, tmp_path) -> None:
    for folder, said in ((loras / "math", "there is no samerge.json"), ("./nowhere", "there is no such folder")):
        result = invoke("inspect", folder)
        assert result.exit_code == 2
        assert said in result.stderr
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "samerge.json").write_text("{")
    assert invoke("inspect", "broken").exit_code == 2


def test_inspect_in_a_pipe(invoke, merged, tmp_path) -> None:
    done = shell("inspect", merged, cwd=tmp_path)
    assert done.returncode == 0
    assert all(len(line) <= 200 for line in done.stdout.splitlines() if line.startswith("│"))


@pytest.mark.parametrize("width", [80, 50])
def test_no_name_is_cut(invoke, merged, loras, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = invoke("inspect", merged, loras / "code").stdout + invoke("inspect", loras / "math", loras / "far").stdout
    assert "…" not in shown
    assert "down_proj" in "".join(shown.split())


def layer(lost: float = 0.0, kept: tuple[int, ...] | None = (0,), **shares: tuple[float, float]) -> LayerRecord:
    adapters = {n: AdapterInLayer(norm=s, energy_kept=e, components=4, kept=kept) for n, (s, e) in shares.items()}
    return LayerRecord(adapters, norm=1.0, rank=4, scale=2.0, lost=lost)


def test_layer_types_weigh_by_energy() -> None:
    (row,) = layer_types({"h.0.q": layer(a=(1.0, 1.0)), "h.1.q": layer(0.5, a=(3.0, 0.0), b=(0.0, 1.0))})
    assert (row.type, row.layers) == ("h.*.q", 2)
    assert row.energy_kept == pytest.approx(0.1)
    assert row.most_lost == 0.5
    assert (row.kept, row.components) == (3, 12)
    assert row.kept_of == {"a": 2, "b": 1}


def test_a_method_that_chooses_nothing_keeps_all() -> None:
    (row,) = layer_types({"h.0.q": layer(kept=None, a=(1.0, 1.0))})
    assert row.kept is None
    assert row.kept_of == {}


def test_worst_layers() -> None:
    layers = {
        "h.0.q": layer(a=(1.0, 0.9), b=(1.0, 0.5)),
        "h.1.q": layer(0.5, a=(1.0, 0.9)),
        "h.2.q": layer(),
        "h.3.q": layer(a=(0.0, 1.0)),
    }
    rows = worst_layers(layers, 2)
    assert [row.module for row in rows] == ["h.1.q", "h.0.q"]
    assert (rows[0].energy_kept, rows[0].lost) == (0.9, 0.5)
    assert (rows[1].least, rows[1].least_kept) == ("b", 0.5)
    assert len(worst_layers(layers, 10)) == 2


def test_one_report_from_a_merge_and_from_what_it_wrote(invoke, tiny_base, loras, tmp_path) -> None:
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "-a", loras / "code", "-o", "merged")
    result = invoke(*words, "--report", "pages/merge.html")
    assert result.exit_code == 0, result.stderr
    assert "report in pages/merge.html" in result.stderr
    page = (tmp_path / "pages" / "merge.html").read_text(encoding="utf-8")
    assert "<h1>Merged: math + code</h1>" in page
    assert str(tmp_path) not in page
    for option in ("--report", "--html"):
        assert invoke("inspect", "merged", option, "i.html").exit_code == 0
        assert (tmp_path / "i.html").read_text(encoding="utf-8") == page


def test_a_report_of_a_file_says_how_to_load_it(invoke, tiny_base, loras, tmp_path) -> None:
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "-a", loras / "code", "-o", "m.gguf", "--format", "gguf")
    assert invoke(*words, "--report", "m.html", "--quiet").exit_code == 0
    assert "llama-cli -m BASE.gguf --lora m.gguf" in (tmp_path / "m.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_refused_before_the_merge(invoke, tiny_base, loras, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.html").mkdir()
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "-a", loras / "code", "-o", "merged")
    for file, said in (("r.txt", "ends in .html"), ("folder.html", "no regular file"), ("file/r.html", "is a file")):
        result = invoke(*words, "--report", file)
        assert result.exit_code == 2
        assert said in result.stderr
    assert not (tmp_path / "merged").exists()
    assert "ends in .html" in invoke("inspect", loras / "math", loras / "code", "--report", "r.txt").stderr


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A folder in which nothing can be made; root may write anywhere, so that permissions would not do."""
    folder = tmp_path / "closed"
    folder.mkdir()
    make = Path.mkdir

    def refuse(self, *args, **kwargs):
        if self.parent == folder:
            raise FileNotFoundError(2, "No such file or directory", str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "merge -a {math} -a {code} -m linear -o out --report {closed}/r.html",
        "merge -a {math} -a {code} -m linear -o out --report {closed}/more/r.html",
        "merge -a {math} -a {code} -m linear -o {closed}/out",
        "merge -a {math} -a {code} -m linear --format kohya -o {closed}/out.safetensors",
        "compare {math} {code} -m linear --save-all -o {closed}/out",
        "compare {math} {code} -m linear --save-all -o out --picture {closed}/p.png",
        "compress {math} --rank 2 -o out --report {closed}/r.html",
        "convert {math} --format mlx -o out --report {closed}/r.html",
        "convert {math} --format mlx -o {closed}/out",
        "bake -b {base} {math} -o out --report {closed}/r.html",
        "full -b {base} --model {base} --model again={base} -o out --report {closed}/r.html",
        "extract -b {base} --model {base} -o out --report {closed}/r.html",
        "tune -a {math} -a {code} -m linear -o out -c 'true {{adapter}}' --report {closed}/r.html",
        "tune -a {math} -a {code} -m linear -o out -c 'true {{adapter}}' --picture {closed}/p.png",
        "inspect {math} {code} --report {closed}/r.html",
        "inspect {math} {code} --picture {closed}/p.png",
        "inspect {merged} --report {closed}/r.html",
        "inspect {merged} --picture {closed}/p.png",
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(invoke, tiny_base, loras, merged, closed, tmp_path, words):
    places = {"math": loras / "math", "code": loras / "code", "base": tiny_base, "merged": merged, "closed": closed}
    result = invoke(*(word.format(**places) for word in shlex.split(words)))
    assert result.exit_code == 2, result.output
    assert f"nothing can be written in {closed} (No such file or directory)" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not [*closed.iterdir()]


def test_a_report_of_several_adapters(invoke, loras, tmp_path) -> None:
    result = invoke("inspect", loras / "math", loras / "code", loras / "far", "--report", "r.html", "--json")
    assert result.exit_code == 0, result.stderr
    told, found = json.loads(result.stdout), Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    head, *rows = found.tables["Cosine between the adapters' updates"]
    assert head[1:] == [row[0] for row in rows] == told["adapters"]
    assert [row[1:] for row in rows] == [[number(value) for value in row] for row in told["cosine"]]
    assert [row[1] for row in found.tables["Sizes"][1:]] == [f"{norm:.3g}" for norm in told["norms"]]
    assert len(found.tables["Each with each"]) == 1 + 3
    assert told["reading"] in " ".join(found.text_of("p"))


def test_an_adapter_of_weight_0_has_no_figures(invoke, loras, tmp_path) -> None:
    words = ("merge", "-a", loras / "math", "-a", f"{loras / 'code'}:0", "-o", "out", "--method", "linear", "--json")
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    stored = json.loads((tmp_path / "out" / "samerge.json").read_text(encoding="utf-8"))
    inspected = json.loads(invoke("inspect", "out", "--json").stdout)
    for told in (printed, stored, inspected):
        assert told["adapters"]["code"] == {"weight": 0.0, "layers": 0}
        assert told["adapters"]["math"]["norm"] > 0

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| `code` | 0 | - | - |" in card
    shown = invoke("inspect", "out", "--report", "p.html").stdout
    assert re.search(r"\n *code +0 +- +- ", shown), shown
    tables = Page((tmp_path / "p.html").read_text(encoding="utf-8")).tables
    head, _, row = next(rows for title, rows in tables.items() if title.startswith("linear: "))
    assert (head[:4], row[:4]) == (["adapter", "weight", "norm", "layers"], ["code", "0", "-", "-"])
    verified = invoke("verify", "out", "--reproduce")
    assert verified.exit_code == 0, verified.stdout + verified.stderr
