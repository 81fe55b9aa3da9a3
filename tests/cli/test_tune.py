"""`samerge tune`: a command as the score, a function as the score, a study that is gone on with."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import hear_interrupts

from samerge.cli.tune import search_space
from samerge.errors import OptionError, TuningError
from samerge.merging.tuning.command import by_command, printed
from samerge.report.report import read_report

pytest.importorskip("optuna")

#: Scores an adapter by how near its largest value is to one; light, for it runs once for each trial.
EVAL = """
import json, pathlib, sys
from safetensors.numpy import load_file
folder = pathlib.Path(sys.argv[1])
assert (folder / "adapter_config.json").is_file()
scale = max(layer["scale"] for layer in json.loads((folder / "samerge.json").read_text())["layers"].values())
print("loading")
print(json.dumps({"score": -abs(scale - 0.5), "tensors": len(load_file(folder / "adapter_model.safetensors"))}))
"""
PYTHON = shlex.quote(sys.executable)


@pytest.fixture
def words(tiny_base: Path, loras: Path, tmp_path: Path) -> list:
    """What every call begins with; the program is in the current folder."""
    (tmp_path / "my eval.py").write_text(EVAL)
    adapters = ["-a", f"math={loras / 'math'}", "-a", str(loras / "code")]
    return ["tune", "-b", tiny_base, *adapters, "--command", f"{PYTHON} 'my eval.py' {{adapter}}", "--method", "linear"]


def test_best_adapter_of_a_command(invoke, words) -> None:
    more = ("--search", "scaling=0.1:2.0", "--trials", 6, "--output", "tuned", "--picture", "scores.svg", "--json")
    result = invoke(*words, *more)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["trials"] == 6
    assert told["failed"] == 0
    assert told["default_score"] == pytest.approx(-0.5)
    assert told["score"] > -0.5
    assert told["best"]["method"] == "linear"
    record = read_report("tuned").record
    assert record.tuning["score"] == told["score"]
    assert record.options["scaling"] == told["best"]["scaling"]
    assert Path("scores.svg").is_file()
    assert "trial 5: " in result.stderr
    assert "data that took no part" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["my eval.py", "scores.svg", "tuned"]


def test_table_and_quiet(invoke, words) -> None:
    table = invoke(*words, "--trials", 2, "-o", "new/folder/one")  # where nothing is yet
    assert table.exit_code == 0, table.output
    assert "score -0.5 (untuned: -0.5) after 2 trials" in table.stdout or "(untuned: -0.5)" in table.stdout
    quiet = invoke(*words, "--trials", 2, "-o", "two", "--quiet")
    assert quiet.stdout == ""
    assert "trial" not in quiet.stderr.replace("best of 2 trials", "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--picture", "scores.doc"), "the file's ending says what to draw"),
        (("-a", "talk=math:0.5", "--weights", "nan"), "give one or the other"),
        (("--densty", "0.5"), "there is no option --densty"),
        (("--rank", "much"), "--rank much must be"),
    ],
)
def test_refused_before_any_trial(invoke, words, more, said) -> None:
    result = invoke(*words, "--trials", 2, "-o", "out", *more)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "trial 0" not in result.stderr


def test_without_a_base(invoke, words) -> None:
    result = invoke("tune", *words[3:], "--trials", 2, "-o", "out")
    assert result.exit_code == 0, result.output
    assert read_report("out").record.base.name is None


def test_python_function(invoke, words, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "evaluation_here.py").write_text(
        "def count(merged):\n    return sum(f.rank for f in merged.factors.values())\n"
    )
    start = [word for word in words if "eval.py" not in str(word) and word != "--command"]
    options = ("-s", "svd_rank=1,5", "--trials", 8, "--minimize", "--dtype", "bfloat16")
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = invoke(*start, "--score-callable", "evaluation_here:count", *options, "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["best"] == {"dtype": "bfloat16", "svd_rank": 1, "method": "linear"}
    output = read_report("out").record.output
    assert (output.rank, output.dtype) == (1, "bfloat16")
    for wrong, message in (
        ("evaluation_here", "MODULE:FUNCTION"),
        ("no_such:f", "No module"),
        ("json:f", "no function"),
    ):
        refused = invoke(*start, "--score-callable", wrong, "-o", "x")
        assert refused.exit_code == 2
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ValueError('boom')", "raised ValueError: boom (bad_module.py, line 1)"),
        ("open('/no/such/file')", "raised FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("def f(:", "raised SyntaxError: invalid syntax (bad_module.py, line 1)"),
        ("import sys; sys.exit('usage: none')", "raised SystemExit: usage: none (bad_module.py, line 1)"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_its_own_fault(
    invoke, words, tmp_path: Path, monkeypatch, text, said
) -> None:
    (tmp_path / "bad_module.py").write_text(text)
    start = [word for word in words if "eval.py" not in str(word) and word != "--command"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bad_module", raising=False)
    importlib.invalidate_caches()
    result = invoke(*start, "--score-callable", "bad_module:f", "-o", "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --score-callable 'bad_module:f': ")
    assert said in result.stderr
    assert "bug in samerge" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("line", ["raise KeyError('label')", "import sys; sys.exit(3)"])
def test_a_function_that_raises_is_told_as_the_one_that_did(invoke, words, tmp_path: Path, monkeypatch, line) -> None:
    (tmp_path / "bad_function.py").write_text(f"def f(merged):\n    {line}\n")
    start = [word for word in words if "eval.py" not in str(word) and word != "--command"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bad_function", raising=False)
    importlib.invalidate_caches()
    result = invoke(*start, "--score-callable", "bad_function:f", "-o", "out", "--trials", 2)
    assert result.exit_code == 2
    assert "trial 0 failed: the score function raised " in result.stderr
    assert "(bad_function.py, line 2)" in result.stderr
    assert "all 2 trials failed" in result.stderr


def test_the_method_that_stands_in_for_lack_of_a_base_is_told(invoke, words) -> None:
    start = [word for word in words if word not in ("--method", "linear")]
    shown = invoke("tune", *start[3:], "--trials", 1, "-o", "out", "--json")
    assert shown.exit_code == 0, shown.output
    assert "note: no base was given" in shown.stderr
    json.loads(shown.stdout)


def test_study_goes_on_and_is_refused_to_others(invoke, words) -> None:
    study = ("--study", "study.jsonl", "-s", "scaling=0.1:2")
    assert invoke(*words, *study, "--trials", 3, "-o", "one").exit_code == 0
    longer = invoke(*words, *study, "--trials", 5, "-o", "two")
    assert longer.exit_code == 0
    assert [line for line in longer.stderr.splitlines() if line.startswith("trial")] == [
        line for line in longer.stderr.splitlines() if line.startswith(("trial 3:", "trial 4:"))
    ]
    assert len(read_report("two").record.tuning["trials"]) == 5
    other = invoke(*words, "--study", "study.jsonl", "-s", "scaling=0.1:3", "-o", "three")
    assert other.exit_code == 2
    assert "belongs to another search, with another search" in other.stderr
    assert "or remove this one" in other.stderr.replace("\n", " ")
    assert not Path("three").exists()
    taken = invoke(*words, *study, "-o", "two")
    assert taken.exit_code == 2
    assert "exists already" in taken.stderr


def test_failed_trials_show_the_end_of_stderr(invoke, words) -> None:
    Path("my eval.py").write_text("import sys\nsys.exit('the [data] is missing')")
    result = invoke(*words, "--trials", 2, "-o", "out")
    assert result.exit_code == 2
    assert "trial 0 failed: the command ended with exit code 1: the [data] is missing" in result.stderr
    assert "all 2 trials failed" in result.stderr
    assert not Path("out").exists()
    Path("my eval.py").write_text(EVAL)
    assert invoke(*words, "--trials", 2, "-o", "out").exit_code == 0  # the study of failures is no hindrance
    states = [trial["state"] for trial in read_report("out").record.tuning["trials"]]
    assert states == ["failed"] * 2 + ["complete"] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--score-callable", "a:b"], "one of the two"),
        (["--search", "scaling"], "must be NAME=LOW:HIGH"),
        (["--search", "scaling=2:1"], "searching scaling: the lower bound, 2, must be below the upper one, 1"),
        (["--search", "skaling=2:3"], "did you mean 'scaling'"),
        (["--weights", "1"], "1 weights for 2 adapters"),
        (["--mu", "1"], "there is no option --mu; it is one of wudi"),
    ],
)
def test_bad_input(invoke, words, change, message) -> None:
    result = invoke(*words, "-o", "out", *change)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert not Path("out").exists()


def test_nowhere_to_put_it(invoke, words) -> None:
    assert "give --out FOLDER" in invoke(*words).stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupt_keeps_the_finished_trials(words, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    stuck = f"import time\nif scale != 1.0:\n    pathlib.Path({str(begun)!r}).touch()\n    time.sleep(3600)\n"
    (tmp_path / "my eval.py").write_text(EVAL + stuck)
    line = [sys.executable, "-m", "samerge", *map(str, words), "-s", "scaling=0.1:0.9", "-o", "out", "--trials", "3"]
    how = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": hear_interrupts}
    with subprocess.Popen(line, cwd=tmp_path, **how) as running:
        assert running.stderr is not None
        while not (told := running.stderr.readline()).startswith("trial 0: -0.5"):
            assert told, "it ended"
        while not begun.exists():
            assert running.poll() is None
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        rest = running.stderr.read()
    assert running.returncode == 130
    assert "the finished trials are in" in rest
    assert not (tmp_path / "out").exists()
    (tmp_path / "my eval.py").write_text(EVAL)
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trial 0" not in done.stderr
    assert len(read_report(tmp_path / "out").record.tuning["trials"]) == 3
    assert not list(tmp_path.glob("*.jsonl"))


def test_command_is_checked_first() -> None:
    for command, message in (
        ("python eval.py", "does not say where"),
        ("no-such-program {adapter}", "no program"),
        ("python 'eval.py {adapter}", "cannot be split"),
    ):
        with pytest.raises(OptionError, match=message):
            by_command(command)


def test_last_line() -> None:
    assert printed("0.1\n1e-3\n\n") == 1e-3
    for text in ("", "done", "[1]", '{"loss": 1}', "null"):
        with pytest.raises(TuningError):
            printed(text)


def test_texts() -> None:
    assert search_space(["svd-rank=2:8", "weights.my-lora=0:1", "residual=true,false", "scaling=auto:1.3,0.5"]) == {
        "svd_rank": ("2", "8"),
        "weights.my-lora": ("0", "1"),
        "residual": ["true", "false"],
        "scaling": ["auto:1.3", "0.5"],
    }


def test_options_are_fixed_as_for_merge(invoke, words) -> None:
    more = ("--trials", 1, "-o", "out", "--overwrite")
    ties = [word if word != "linear" else "ties" for word in words]
    assert invoke(*ties, *more, "--density", 0.4, "--balance", "norm", "--weights", "1,0.5").exit_code == 0
    record = read_report("out").record
    assert (record.options["density"], record.options["balance"]) == (0.4, "norm")
    assert [item.weight for item in record.inputs] == [1.0, 0.5]
