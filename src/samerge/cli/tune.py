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

from samerge.cli.console import show_json, show_notes, show_warnings, show_ways, stderr, stdout
from samerge.cli.exit_codes import INTERRUPTED
from samerge.cli.named_adapter import given_adapters, given_weights
from samerge.cli.own_options import own_options
from samerge.cli.shared_options import Adapters, Base, Manner, MethodName, Picture, Weights
from samerge.cli.shell_words import said
from samerge.cli.spread import FromTable
from samerge.cli.target import AdapterTarget
from samerge.errors import OptionError
from samerge.options.common import CommonOptions
from samerge.report.picture import check_picture

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter
    from samerge.merging.tuning import TuneResult, TuneTrial


def tune(
    *,
    ctx: typer.Context,
    base: Base = None,
    adapter: Adapters = None,
    method: MethodName = None,
    weights: Weights = None,
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
            help="What is searched, once for each option: bounds (LOW:HIGH), or values (A,B,C). Default: "
            "scaling=0.1:2.0, density=0.05:1.0 where the method has it, weights=0.0:2.0.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(metavar="N", help="How many in all; the untuned merge is the first of them.")
    ] = 30,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no further trial after this long.")
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="A small score is good.")] = False,
    search_seed: Annotated[int, typer.Option(metavar="N", help="Of the search.")] = 0,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="Where optuna keeps the trials; goes on from it if it is there. Default: OUT.study.jsonl, removed "
            "when all is done.",
        ),
    ] = None,
    options: Annotated[dict[str, Any], FromTable(CommonOptions)],
    target: AdapterTarget,
    picture: Picture = None,
    manner: Manner,
) -> None:
    """Search scaling, density and weights of a merge, or any other option, by a score on labelled data.

    The last line of what eval.py prints is the score:

        samerge tune --base meta-llama/Llama-3.1-8B --adapter ada/math-lora --adapter ./code-lora \\
            --command "python eval.py {adapter}" --trials 30 --out tuned/

    Two methods, and what is searched of them:

        samerge tune -b ./base -a ./a -a ./b -c "python eval.py {adapter}" -o tuned/ \\
            --search method=tsv,linear --search scaling=0.1:2

    Other options of `samerge merge` are the same in all trials. Interrupted, the same command goes on. The score is on
    the data that the options were chosen by: check the result on other data.
    """
    fixed = {**options, **own_options(ctx, method)}
    specs = given_adapters(adapter)
    values = None if weights is None and all(spec.weight == 1 for spec in specs) else given_weights(weights, specs)
    if not target.out:
        raise OptionError("nowhere to put the best adapter; give --out FOLDER")
    target.check("best adapter", sources=[spec.source for spec in specs])
    if picture:
        check_picture(picture)
    score = _score(command, score_callable)
    kept = study or f"{os.path.abspath(Path(target.out).expanduser())}.study.jsonl"
    if study is None:
        Path(kept).parent.mkdir(parents=True, exist_ok=True)  # as saving does at the end; optuna makes no folder
    from samerge.merging.tuning import tune as tune_

    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")  # what the user should know is in the report
            result = tune_(
                base,
                {spec.name: spec.source for spec in specs},
                score,
                method=method,
                weights=values,
                trials=trials,
                search=search_space(search),
                search_seed=search_seed,
                storage=kept,
                timeout=timeout,
                direction="minimize" if minimize else "maximize",
                on_trial=None if manner.quiet else _say,
                progress=not manner.quiet,
                **fixed,
            )
    except KeyboardInterrupt:
        told = f"interrupted: the finished trials are in {kept}; the same command goes on from there"
        stderr().print(told, markup=False)
        raise typer.Exit(INTERRUPTED) from None
    url = target.deliver(result.merged, manner.quiet)
    if picture:
        result.picture(picture)
    if study is None:
        Path(kept).unlink(missing_ok=True)
    _tell(result, target, url, study, manner)


def search_space(texts: list[str] | None) -> dict[str, Any] | None:
    """What `--search` says: a pair for LOW:HIGH, a list for A,B,C, values as text; None for nothing.

    Raises:
        OptionError: one of them is neither, or a name stands there twice.

    Example:
        >>> search_space(["scaling=0.1:2.0", "svd-rank=8,16"])
        {'scaling': ('0.1', '2.0'), 'svd_rank': ['8', '16']}
    """
    found: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        # the name of an adapter may have hyphens, that of an option is written with either
        name = name if name.startswith("weights.") else name.replace("-", "_")
        if not name or not equals or not value or name in found:
            raise OptionError(f"--search {text!r}: it must be NAME=LOW:HIGH or NAME=A,B,C, each name once")
        bounds = [part.strip() for part in value.split(":")]
        pair = len(bounds) == 2 and all(_is_number(part) for part in bounds)
        found[name] = tuple(bounds) if pair else [part.strip() for part in value.split(",")]
    return found or None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _score(command: str | None, function: str | None) -> Callable[[MergedAdapter], Any]:
    if (command is None) == (function is None):
        raise OptionError("give --command TEXT or --score-callable MODULE:FUNCTION, and one of the two")
    if command is not None:
        from samerge.merging.tuning.command import by_command

        return by_command(command)
    module, colon, name = str(function).partition(":")
    if not module or not colon or not name:
        raise OptionError(f"--score-callable {function!r}: it must be MODULE:FUNCTION, as in evaluation:accuracy")
    from samerge.merging.tuning.scoring import raised

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise OptionError(f"--score-callable {function!r}: {error} (searched from {Path.cwd()}, too)") from error
    except (Exception, SystemExit) as error:  # whatever the user's own module raises while it is imported
        told = raised(error)
        raise OptionError(f"--score-callable {function!r}: importing the module {module} raised {told}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise OptionError(f"--score-callable {function!r}: {module} has no function {name!r}")
    return found  # type: ignore[no-any-return]


def _say(trial: TuneTrial) -> None:
    """One line a trial where no bar is shown; failed ones always."""
    if trial.error is not None:
        stderr().print(f"trial {trial.number} failed: {said(trial.error)}", markup=False)
    elif not sys.stderr.isatty():
        stderr().print(f"trial {trial.number}: {trial.score:.6g}", markup=False)


def _tell(result: TuneResult, target: AdapterTarget, url: str | None, study: str | None, manner: Manner) -> None:
    show_warnings(result.merged.report.warnings)
    show_notes([] if manner.quiet else result.merged.report.notes)
    failed = sum(trial.state == "failed" for trial in result.trials)
    if manner.as_json:
        figures = {name: getattr(result, name) for name in ("score", "default_score", "direction")}
        counts = {"trials": len(result.trials), "failed": failed, "warnings": result.merged.report.warnings}
        show_json({"out": target.out, "url": url, "study": study, "best": dict(result.best), **figures, **counts})
    elif not manner.quiet:
        console = stdout()
        for name, value in result.best.items():
            console.print(f"{name:>16}  {_text(value)}", markup=False, soft_wrap=True)
        untuned = "failed" if result.default_score is None else f"{result.default_score:.6g}"
        trials = f"{len(result.trials)} trials" + (f", {failed} failed" if failed else "")
        console.print(f"score {result.score:.6g} (untuned: {untuned}) after {trials}", markup=False)
        placed = target.place(result.merged)
        show_ways(placed[1] if placed else None, None)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name}={_text(item)}" for name, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
