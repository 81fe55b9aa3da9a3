from __future__ import annotations

import json
import os
import warnings

import pytest
import torch
from alike import same_files

import samerge
from samerge.errors import HubError
from samerge.report.report import read_report

from .conftest import shell


def test_merge_equals_the_api(invoke, tiny_base, loras, tmp_path) -> None:
    result = invoke(
        *("merge", "--base", tiny_base, "--adapter", f"m={loras / 'math'}", "--adapter", f"{loras / 'code'}:-0.5"),
        *("--out", "merged", "--density", "0.5", "--iterations=3", "--basis", "native", "--connectivity", "flow"),
        *("--no-residual", "--scaling", "0.7", "--dtype", "bfloat16", "--svd-rank", "3.0", "--device", "cpu"),
        *("--method", "paper", "--balance", "none"),
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
            method="paper",
            density=0.5,
            iterations=3,
            basis="native",
            connectivity="flow",
            residual=False,
            scaling=0.7,
            balance="none",
            dtype="bfloat16",
            svd_rank=3,
            device="cpu",
            progress=False,
        )
    same_files(tmp_path / "merged", expected.save(tmp_path / "python"))
    assert read_report("merged").record.options == expected.report.record.options


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
    assert read_report("sum").record.output.rank == 8


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
    assert list(told["adapters"]) == ["math", "far"]
    assert [one["kept"] for one in told["adapters"].values()] == [8, 8]
    assert len(told["warnings"]) == 1
    # the warning once, in our words, and no raw Python warning
    assert done.stderr.count("by name these adapters were trained on") == 1
    assert done.stderr.startswith("warning: by name these adapters were trained on ")
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
    assert read_report("out").record.output.rank == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--density", "3"], "--density 3 must lie in (0, 1]"),
        (["--density", "0.5", "--rank", "3"], "--rank 3 and --density 0.5 together"),
        (["--rank", "much"], "--rank much must be a whole number"),
        (["--densty", "0.3"], "there is no option --densty; did you mean --density?"),
        (["--adaptor", "x"], "there is no option --adaptor; did you mean --adapter?"),
        (["--trim", "layer"], "there is no option --trim; it is one of ties. Method"),
        (["--density"], "--density needs a value: (0,1]"),
        (["--iterations", "2", "--iterations=3"], "--iterations is given twice"),
        (["--residual", "--no-residual"], "is given twice"),
        (["./talk"], "'./talk' stands alone; an adapter is given with --adapter ./talk"),
        (["--method", "magic"], "--method magic is not known"),
        (["--method", "dare_tie"], "did you mean 'dare_ties'?"),
        (
            ["--method", "linear", "--basis", "svd"],
            "there is no option --basis; it is one of paper. Method linear has none",
        ),
        (["--connectivity", "loose"], "--connectivity loose is not known"),
        (["--scaling", "loud"], "--scaling loud is not known"),
        (["--scaling", "auto:loud"], "must be auto:C with"),
        (["--dtype", "int3"], "--dtype int3"),
        (["--device", "gpu"], "--device gpu cannot be computed on here"),
        (["--balance", "yes"], "--balance yes is not known"),
        (["--weights", "best"], "--weights best is not known"),
        (["--adapter", "a="], "the source is empty"),
        (["--adapter", "math=nowhere/at/all"], "two adapters are called 'math'"),
        (["--adapter", "./nowhere"], "there is no such folder"),
        (["--adapter", "./nowhere:0,5"], "./nowhere:0.5"),
        (["--private"], "give --push-to-hub"),
        (["--create-pr"], "give --push-to-hub"),
        (["--push-to-hub", "a/b/c"], "a repository id is"),
        (["--push-to-hub", "a/b", "--create-pr", "--revision", "x"], "leave one of them out"),
    ],
)
def test_bad_input(invoke, tiny_base, loras, tmp_path, words, message) -> None:
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "-o", "out", *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["compare"], ["compare", "--nonsense"], ["tune", "--trials", "many"], ["nonsense"]],
)
def test_bad_usage(invoke, words) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_no_adapter(invoke) -> None:
    assert "no adapter given; name at least one with --adapter" in invoke("merge", "--out", "x").stderr


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


@pytest.fixture
def pushed(monkeypatch) -> list:
    calls = []

    def push(self, repo_id, **options):
        calls.append((repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("samerge.merging.merged_adapter.MergedAdapter.push_to_hub", push)
    return calls


def test_a_push_that_fails_does_not_lose_the_merge(invoke, tiny_base, loras, monkeypatch, tmp_path) -> None:
    def push(self, repo_id, **options):
        raise HubError("pushing to ada/merged: 403")

    monkeypatch.setattr("samerge.merging.merged_adapter.MergedAdapter.push_to_hub", push)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "--push-to-hub", "ada/merged")
    assert result.exit_code == 2
    assert "403" in result.stderr
    (kept,) = tmp_path.glob("samerge-*/merged")
    assert str(kept) in "".join(result.stderr.split())
    assert (kept / "adapter_model.safetensors").is_file()


def test_push(invoke, tiny_base, loras, pushed) -> None:
    words = ("merge", "-b", tiny_base, "-a", loras / "math", "--push-to-hub", "ada/merged")
    assert json.loads(invoke(*words, "--json").stdout)["url"] == "https://huggingface.co/ada/merged"
    result = invoke(*words, "--private", "--revision", "v2", "--commit-message", "mine", "--out", "out")
    assert "Pushed to: https://huggingface.co/ada/merged" in result.stdout
    assert invoke(*words, "--create-pr").exit_code == 0
    plain = {"private": None, "revision": None, "create_pr": False}
    assert pushed == [
        ("ada/merged", plain),
        ("ada/merged", {"private": True, "revision": "v2", "create_pr": False, "commit_message": "mine"}),
        ("ada/merged", {**plain, "create_pr": True}),
    ]


def test_every_command_that_makes_an_adapter_can_push_it(invoke, tiny_base, loras, pushed) -> None:
    assert invoke("compress", loras / "math", "--rank", 2, "--push-to-hub", "ada/small", "-q").exit_code == 0
    assert [repository for repository, _ in pushed] == ["ada/small"]


def test_token(invoke, loras, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    words = ("merge", "-a", loras / "math", "--method", "linear", "-o", "out", "--token", "hf_secret")
    result = invoke(*words)
    assert result.exit_code == 0
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in result.output


def test_options_of_a_method_alone(invoke, loras) -> None:
    words = ("merge", "-a", loras / "math", "-a", loras / "code", "--method", "robustmerge", "--out", "out", "--json")
    options = json.loads(invoke(*words, "--floor", "0.5", "--density=1e-1").stdout)["options"]
    assert (options["density"], options["floor"]) == (1e-1, 0.5)


def test_weights(invoke, loras) -> None:
    words = ("merge", "-a", loras / "math", "-a", loras / "code", "--method", "linear", "--out", "out", "--json")
    result = invoke(*words, "--weights", "nan", "--scaling", "auto:1.5")
    assert sum(row["weight"] for row in json.loads(result.stdout)["adapters"].values()) == pytest.approx(2)
    result = invoke(*words, "--weights", "0.5,-1", "--overwrite")
    assert [row["weight"] for row in json.loads(result.stdout)["adapters"].values()] == [0.5, -1.0]
    result = invoke("merge", "-a", f"{loras / 'math'}:0.5", "--method", "linear", "--out", "two", "--weights", "nan")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "together: give one or the other" in result.stderr


def test_a_merge_of_which_nothing_is_named(invoke, tiny_base, loras) -> None:
    words = ("merge", "-a", loras / "math", "-a", loras / "code", "-o", "out", "--overwrite")
    assert invoke(*words, "-b", tiny_base).exit_code == 0
    assert read_report("out").record.method == "saliency"
    without = invoke(*words)
    assert without.exit_code == 0, without.output
    assert read_report("out").record.method == "even"
    assert "no base was given" in " ".join(without.stdout.lower().split())
    refused = invoke(*words, "--method", "saliency")
    assert refused.exit_code == 2
    assert "give --base" in refused.stderr


def test_weights_by_module(invoke, tiny_base, loras, tmp_path) -> None:
    words = ("--module-weight", "layers.0.*=math:0.5", "--module-weight", "q_proj=0")
    adapters = {"math": loras / "math", "code": loras / "code"}
    given = [word for name, folder in adapters.items() for word in ("-a", f"{name}={folder}")]
    result = invoke("merge", "-b", tiny_base, *given, "-o", "out", *words)
    assert result.exit_code == 0, result.output
    rules = {"layers.0.*": {"math": 0.5}, "q_proj": 0}
    expected = samerge.merge(tiny_base, adapters, modules=rules, progress=False)
    same_files(tmp_path / "out", expected.save(tmp_path / "python"))
    assert "layers.0.* of math times 0.5" in invoke("inspect", "out").stdout.replace("\n", " ")
    refused = invoke("merge", "-b", tiny_base, *given, "-o", "other", "--module-weight", "0.5")
    assert refused.exit_code == 2
    assert "--module-weight 0.5 must be GLOB=WEIGHT" in refused.stderr


def test_the_method_that_stands_in_for_lack_of_a_base_is_told(invoke, loras) -> None:
    """In the table, on stderr beside JSON, and not where silence was asked for."""
    words = ("merge", "-a", loras / "math", "-a", loras / "code")
    note = "base was given, so the components were ranked by their size alone"
    assert note in " ".join(invoke(*words, "-o", "shown").stdout.split())
    beside = invoke(*words, "-o", "json", "--json")
    assert next(line for line in beside.stderr.splitlines() if note in line).startswith("note: ")
    assert json.loads(beside.stdout)["method"] == "even"
    assert note not in invoke(*words, "-o", "quiet", "--quiet").output
    assert note not in invoke(*words, "-o", "both", "--quiet", "--json").stderr
