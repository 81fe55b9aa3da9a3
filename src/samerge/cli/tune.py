"""`samerge tune`: the options of a merge searched by a score."""

from __future__ import annotations

import importlib
import os
import sys
import warnings as python_warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_json, show_warnings, stderr, stdout
from samerge.cli.exit_codes import INTERRUPTED
from samerge.cli.named_adapter import parse_adapter, unique
from samerge.cli.searching import fixed_options, search_space
from samerge.cli.shared_options import Json, Overwrite, Quiet
from samerge.errors import OptionError
from samerge.report.picture import check_picture

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter
    from samerge.merging.tuning import TuneResult, TuneTrial


def tune(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The base model, a folder or hub id; - where no candidate reads it.")
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER",
            help="[NAME=]SOURCE[:WEIGHT], a folder or hub id each; the weights are those of the untuned merge.",
        ),
    ],
    command: Annotated[
        str | None,
        typer.Option(
            "--command",
            "-c",
            metavar="TEXT",
            help="Scores a candidate: run with {adapter} replaced by its folder, without a shell. The last line of "
            'its stdout is a number, or JSON with a "score".',
        ),
    ] = None,
    score_callable: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Instead: a Python function that takes a samerge.MergedAdapter."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            "-s",
            metavar="NAME=LOW:HIGH",
            help="What is searched, once for each option: bounds (LOW:HIGH, LOW:HIGH:log), or values (A,B,C). Default: "
            "scaling=0.1:2.0, density=0.05:1.0 where the named method has it, weights=0.0:2.0.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="A method from `samerge methods`. Default: the recipe even.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Any other option of `samerge merge`, fixed; repeatable."),
    ] = None,
    trials: Annotated[
        int, typer.Option(metavar="N", help="How many in all; the untuned merge is the first of them.")
    ] = 30,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no further trial after this long.")
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="A small score is good.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the search.")] = 0,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the trials are kept; goes on from it if it is there. Default: OUTPUT.study.jsonl, removed "
            "when all is done.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--output", "--out", "-o", metavar="FOLDER", help="The folder to make.")
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the scores (.png, .svg, .pdf); needs matplotlib.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search scaling, density and weights of a merge, or any other option, by a score on labelled data.

    The last line of what eval.py prints is the score:

        samerge tune meta-llama/Llama-3.1-8B ada/math-lora ./code-lora \\
            --command "python eval.py {adapter}" --trials 30 --output tuned/

    Two methods, and what is searched of them:

        samerge tune ./base ./a ./b -c "python eval.py {adapter}" -s method=tsv,linear -s scaling=0.1:2 -o tuned/

    Interrupted, the same command goes on. The score is on the data that the options were chosen by: check the result on
    other data.
    """
    if not out:
        raise OptionError("nowhere to put the best adapter; give --output FOLDER")
    specs = unique(tuple(parse_adapter(text, option="ADAPTER") for text in adapters))
    from samerge.cli.request import check_folder

    check_folder(out, overwrite)
    fixed = fixed_options(option, [spec.name for spec in specs])
    if any(spec.weight != 1 for spec in specs):
        if "weights" in fixed:
            raise OptionError(
                f"--option weights={fixed['weights']} and weights of single adapters together: give one or the other"
            )
        fixed["weights"] = {spec.name: spec.weight for spec in specs}
    if picture:
        check_picture(picture)
    score, name = _score(command, score_callable)
    kept = study or f"{os.path.abspath(Path(out).expanduser())}.study.jsonl"
    from samerge.merging.tuning import tune as tune_

    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")  # what the user should know is in the report
            result = tune_(
                None if base == "-" else base,
                {spec.name: spec.source for spec in specs},
                score,
                method=method,
                trials=trials,
                search=search_space(search),
                seed=seed,
                storage=kept,
                timeout=timeout,
                direction="minimize" if minimize else "maximize",
                score_name=name,
                on_trial=None if quiet else _say,
                progress=not quiet,
                **fixed,
            )
    except KeyboardInterrupt:
        stderr().print(
            f"interrupted: the finished trials are in {kept}; the same command goes on from there", markup=False
        )
        raise typer.Exit(INTERRUPTED) from None
    result.save(out, overwrite=overwrite)
    if picture:
        result.picture(picture)
    if study is None:
        Path(kept).unlink(missing_ok=True)
    _tell(result, out, study, as_json, quiet)


def _score(command: str | None, function: str | None) -> tuple[Callable[[MergedAdapter], Any], str]:
    """The score, and its name in the study."""
    if (command is None) == (function is None):
        raise OptionError("give --command TEXT or --score-callable MODULE:FUNCTION, and one of the two")
    if command is not None:
        from samerge.merging.tuning.command import by_command

        return by_command(command), command
    module, colon, name = str(function).partition(":")
    if not module or not colon or not name:
        raise OptionError(f"--score-callable {function!r}: it must be MODULE:FUNCTION, as in evaluation:accuracy")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise OptionError(f"--score-callable {function!r}: {error} (searched from {Path.cwd()}, too)") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise OptionError(f"--score-callable {function!r}: {module} has no function {name!r}")
    return found, str(function)


def _say(trial: TuneTrial) -> None:
    """One line a trial where no bar is shown; failed ones always."""
    if trial.error is not None:
        stderr().print(f"trial {trial.number} failed: {trial.error}", markup=False)
    elif not sys.stderr.isatty():
        stderr().print(f"trial {trial.number}: {trial.score:.6g}", markup=False)


def _tell(result: TuneResult, out: str, study: str | None, as_json: bool, quiet: bool) -> None:
    show_warnings(result.merged.report.warnings)
    failed = sum(trial.state == "failed" for trial in result.trials)
    if as_json:
        best = {name: _shown(value) for name, value in result.best.items()}
        show_json(
            {
                "out": out,
                "study": study,
                "best": best,
                "score": result.score,
                "default_score": result.default_score,
                "direction": result.direction,
                "trials": len(result.trials),
                "failed": failed,
                "warnings": result.merged.report.warnings,
            }
        )
    elif not quiet:
        _show(result, out, failed)


def _show(result: TuneResult, out: str, failed: int) -> None:
    console = stdout()
    for name, value in result.best.items():
        console.print(f"{name:>16}  {_text(value)}", markup=False, soft_wrap=True)
    untuned = "failed" if result.default_score is None else f"{result.default_score:.6g}"
    trials = f"{len(result.trials)} trials" + (f", {failed} failed" if failed else "")
    console.print(f"score {result.score:.6g} (untuned: {untuned}) after {trials}", markup=False)
    console.print(f'Load it:   PeftModel.from_pretrained(base, "{out}")', markup=False, soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name}={_text(item)}" for name, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shown(value: Any) -> Any:
    return value if isinstance(value, (Mapping, bool, int, float, str, type(None))) else str(value)
