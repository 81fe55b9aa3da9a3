from __future__ import annotations

import json
import warnings

import pytest
import torch
from alike import same_files

import samerge
from samerge.cli import request as request_module
from samerge.errors import HubError
from samerge.report.report import read_report

from .conftest import shell


def test_merge_equals_the_api(invoke, tiny_base, loras, tmp_path) -> None:
    result = invoke(
        *("merge", "--base", tiny_base, "--adapter", f"m={loras / 'math'}", "--adapter", f"{loras / 'code'}:-0.5"),
        *("--out", "merged", "--density", "0.5", "--iterations", 3, "--basis", "native", "--agreement", "signed"),
        *("--connectivity", "flow", "--no-residual", "--scaling", "0.7", "--dtype", "bfloat16", "--svd-rank", 3),
        *("--scope", "global", "--device", "cpu", "--method", "saliency", "--recipe", "paper", "--refresh", 2),
        *("--precision", "float64"),
    )
    assert result.exit_code == 0, result.output
    assert "2 adapters merged" in result.stdout
    assert 'PeftModel.from_pretrained(base, "merged")' in result.stdout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = samerge.merge(
            tiny_base,
            {"m": loras / "math", "code": loras / "code"},
            weights=[1.0, -0.5],
            density=0.5,
            iterations=3,
            basis="native",
            agreement="signed",
            connectivity="flow",
            residual=False,
            scaling=0.7,
            dtype="bfloat16",
            svd_rank=3,
            scope="global",
            refresh=2,
            precision="float64",
            device="cpu",
            method="saliency",
            recipe="paper",
            progress=False,
        )
    same_files(tmp_path / "merged", expected.save(tmp_path / "python"))
    assert read_report("merged").record["options"] == expected.report.record["options"]


def test_peft_loads_what_it_wrote(invoke, tiny_base, loras) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert invoke("merge", "-b", tiny_base, "-a", loras / "math", "-a", loras / "code", "-o", "out").exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokens = torch.arange(8)[None]
    plain = model(tokens).logits
    assert not torch.allclose(PeftModel.from_pretrained(model, "out")(tokens).logits, plain)


def test_exact_sum_needs_no_base(invoke, loras) -> None:
    result = invoke("merge", "-a", loras / "math", "-a", loras / "code", "--method", "linear", "-o", "sum")
    assert result.exit_code == 0, result.output
    assert read_report("sum").record["output"]["rank"] == 8


def test_json_is_all_of_stdout(tiny_base, loras, tmp_path) -> None:
    done = shell(
        *("merge", "--base", tiny_base, "--adapter", loras / "math", "--adapter", loras / "far"),
        *("--method", "saliency", "--out", "merged", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["out"] == "merged"
    assert told["url"] is None
    assert told["output"]["rank"] == 4
    assert [expert["name"] for expert in told["experts"]] == ["math", "far"]
    assert [expert["kept"] for expert in told["experts"]] == [8, 8]
    assert len(told["warnings"]) == 1
    # the warning once, in our words, and no raw Python warning
    assert done.stderr.count("someone/else") == 1
    assert done.stderr.startswith("warning: by name these adapters were trained on another base")
    assert "UserWarning" not in done.stderr
    assert "saved in merged" in done.stderr


def test_quiet(invoke, tiny_base, loras) -> None:
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-a", loras / "far", "-o", "out", "-q")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("warning: ")
    assert "saved" not in result.stderr


def test_existing_output_is_refused_before_any_work(invoke, tiny_base, loras, tmp_path, monkeypatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("it began to merge")

    monkeypatch.setattr("samerge.merging.merge_adapters.merge", never)
    (tmp_path / "out").mkdir()
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "--overwrite" in result.stderr
    (tmp_path / "out" / "thesis.txt").write_text("")
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out", "--overwrite")
    assert result.exit_code == 2
    assert "thesis.txt" in result.stderr
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out/thesis.txt/below")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_overwrite(invoke, tiny_base, loras) -> None:
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out")
    assert invoke(*words).exit_code == 0
    assert invoke(*words).exit_code == 2
    assert invoke(*words, "--rank", 2, "--overwrite").exit_code == 0
    assert read_report("out").record["output"]["rank"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--density", "3"], "density=3.0 must lie in (0, 1]"),
        (["--density", "0.5", "--rank", "3"], "give one"),
        (["--basis", "fourier"], "basis='fourier'"),
        (["--method", "magic"], "method='magic' is not known"),
        (["--method", "linear", "--basis", "svd"], "has no option 'basis'"),
        (["--scaling", "loud"], "scaling='loud'"),
        (["--dtype", "int3"], "dtype='int3'"),
        (["--recipe", "cake"], "recipe='cake'"),
        (["--adapter", "a="], "the source is empty"),
        (["--adapter", "math=nowhere/at/all"], "two adapters are called 'math'"),
        (["--adapter", "./nowhere"], "there is no such folder"),
        (["--private"], "give --push-to-hub"),
        (["--push-to-hub", "a/b/c"], "A repository id is"),
    ],
)
def test_bad_input(invoke, tiny_base, loras, tmp_path, words, message) -> None:
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out", "--method", "saliency", *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["merge"], ["merge", "--adapter", "x", "--rank", "much"], ["merge", "--nonsense"], ["nonsense"]]
)
def test_bad_usage(invoke, words) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_no_place_for_the_result(invoke, loras) -> None:
    result = invoke("merge", "-a", loras / "math", "--method", "linear")
    assert result.exit_code == 2
    assert "nowhere to put the merged adapter" in result.stderr


def test_bad_input_in_a_real_shell_has_no_traceback(tiny_base, loras, tmp_path) -> None:
    done = shell("merge", "--base", tiny_base, "--adapter", loras / "math:nan", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_traceback_of_bad_input_on_request(invoke, loras, monkeypatch) -> None:
    monkeypatch.setenv("SAMERGE_TRACEBACK", "1")
    result = invoke("merge", "-a", loras / "math", "--method", "saliency", "-o", "out")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_a_push_that_fails_does_not_lose_the_merge(invoke, tiny_base, loras, monkeypatch, tmp_path) -> None:
    def push(self, repo_id, *, private=None):
        raise HubError("pushing to ada/merged: 403")

    monkeypatch.setattr("samerge.merging.merged_adapter.MergedAdapter.push_to_hub", push)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "--push-to-hub", "ada/merged")
    assert result.exit_code == 2
    assert "403" in result.stderr
    (kept,) = tmp_path.glob("samerge-*/merged")
    assert str(kept) in "".join(result.stderr.split())
    assert (kept / "adapter_model.safetensors").is_file()


def test_push(invoke, tiny_base, loras, monkeypatch) -> None:
    pushed = []

    def push(self, repo_id, *, private=None):
        pushed.append((repo_id, private, self.report.record["output"]["rank"]))
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("samerge.merging.merged_adapter.MergedAdapter.push_to_hub", push)
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "--push-to-hub", "ada/merged")
    result = invoke(*words, "--json")
    assert json.loads(result.stdout)["url"] == "https://huggingface.co/ada/merged"
    result = invoke(*words, "--private", "--out", "out")
    assert "Pushed to: https://huggingface.co/ada/merged" in result.stdout
    assert pushed == [("ada/merged", None, 4), ("ada/merged", True, 4)]


def test_the_options_are_those_of_merge() -> None:
    import inspect

    from samerge.cli.merge import merge as command

    taken = inspect.signature(samerge.merge).parameters
    api = [name for name in taken if name not in ("base", "adapters", "weights", "progress")]
    assert list(request_module.OPTIONS) == api
    one_by_one = {"method_options": "method_option"}
    assert {one_by_one.get(name, name) for name in api} <= set(inspect.signature(command).parameters)


def test_options_of_a_method_alone(invoke, loras) -> None:
    words = ("merge", "-a", loras / "math", "-a", loras / "code", "--method", "wudi", "--out", "out", "--json")
    result = invoke(*words, "--method-option", "mu=0.5", "--method-option", "cutoff=1e-3")
    assert json.loads(result.stdout)["options"]["method_options"] == {"cutoff": 1e-3, "mu": 0.5}
    for wrong in ("mu", "=1", "mu=", "lambda=1", "mu=much"):
        result = invoke(*words, "--overwrite", "--method-option", wrong)
        assert (result.exit_code, result.stdout) == (2, "")


def test_weights_by_norms(invoke, loras) -> None:
    words = ("merge", "-a", loras / "math", "-a", loras / "code", "--method", "linear", "--out", "out", "--json")
    result = invoke(*words, "--weights", "nan", "--scaling", "lines:0.5:0.5")
    assert sum(row["weight"] for row in json.loads(result.stdout)["experts"]) == pytest.approx(2)
    result = invoke("merge", "-a", f"{loras / 'math'}:0.5", "--method", "linear", "--out", "two", "--weights", "nan")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "together: give one or the other" in result.stderr
