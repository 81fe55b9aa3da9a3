"""`tune`: candidates merged in memory, scored by the caller, chosen by optuna."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Literal

from torch import nn

from samerge.errors import OptionError, SamergeError, TuningError
from samerge.merging.inputs import AdapterLike, open_base
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.tuning.candidates import Candidates
from samerge.merging.tuning.identity import identity, name_of
from samerge.merging.tuning.on_model import check_model, on_model
from samerge.merging.tuning.result import TuneResult, TuneTrial, best_of, caution, tuning_record
from samerge.merging.tuning.space import Space, space_of
from samerge.merging.tuning.study import ask, finished, open_study, optuna, silent
from samerge.options.values import choice, number, whole
from samerge.parallel.progress import Progress
from samerge.report.report import Report

logger = logging.getLogger(__name__)


def tune(
    base: str | Path | nn.Module | None,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    score: Callable[[Any], Any],
    *,
    method: str | None = None,
    trials: int = 30,
    search: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
    storage: str | Path | None = None,
    timeout: float | None = None,
    direction: Literal["maximize", "minimize"] = "maximize",
    score_name: str | None = None,
    on_trial: Callable[[TuneTrial], None] | None = None,
    progress: bool = True,
    **options: Any,
) -> TuneResult:
    """Search the options of a merge by a score on labelled data.

    The untuned merge is the first trial, so what is found is never worse than it on this data. Base and adapters are
    opened once. Trials that differ in a numeric scaling only share one merge. A trial that fails is recorded with its
    message, and the search goes on.

    Args:
        base: as for `merge`.
        adapters: as for `merge`.
        score: called with the `MergedAdapter` of a candidate; or, with `model`, with the model, on which the candidate
            is the active adapter. Returns a finite number; anything else is a failed trial.
        method: as for `merge`, the recipe "even" where nothing is named; where methods are searched, that of the
            untuned merge.
        trials: how many in all, the untuned one and those that `storage` holds already among them.
        search: what is searched, by option: bounds (low, high), or (low, high, "log"), or a list of values. Any option
            of `merge`, any of the method's own, "weights" for the weight of every adapter, "weights.<name>" for one.
            Bounds that lie a factor of 10 or more apart are searched on a log scale, weights never. By default scaling
            (0.1, 2.0), density (0.05, 1.0) where the named method has it and no `rank` is given, weights (0.0, 2.0).
        model: a live `PeftModel` of the base; it is as before after every trial. Its own mode (train or eval) holds.
        seed: of the search; the same seed and scores give the same trials, interrupted or not.
        storage: a file to go on from: a journal (append-only), or SQLite by its ending (.db, .sqlite). One process at a
            time.
        timeout: seconds after which no further trial is begun.
        direction: whether the score is to be large or small.
        score_name: what to call the score in the study; the function's name by default.
        on_trial: called after every trial.
        progress: show a progress bar when on a terminal.
        **options: other options of `merge`, the same in all trials to whose links they mean something; where one is
            searched, too, it is the untuned value.

    Returns:
        `.best`, the options; `.merged`, their merge; `.score`, `.default_score`, `.trials`, `.save(folder)`,
        `.picture(file)`.

    Raises:
        OptionError: an option or a bound is not right, optuna is missing, or `storage` belongs to another search.
        TuningError: every trial failed.
        AdapterError: an adapter cannot be read, or `model` cannot take a candidate.
        BaseModelError: the base cannot be read.

    Example:
        ```python
        result = samerge.tune(model, ["math", "code"], lambda m: accuracy(m, validation), model=model, trials=30)
        result.save("merged/")
        ```
    """
    whole("trials", trials)
    whole("seed", seed, least=0)
    choice("direction", direction, ("maximize", "minimize"))
    if timeout is not None and number("timeout", timeout) <= 0:
        raise OptionError(f"timeout={timeout} must be above 0 seconds")
    optuna()
    if model is not None:
        check_model(model)
    candidates = Candidates(base, adapters)
    space = space_of(search, {**options, "method": method}, candidates.names)
    open_base(candidates.base, required=space.needs_base)
    named = score_name or name_of(score)
    what = identity(candidates, space, direction, named if model is None else f"{named} on a model")
    scored = score if model is None else on_model(model, score)
    with silent():
        study = open_study(storage, direction, what)
        _search(study, candidates, space, scored, trials, seed, timeout, direction, on_trial, Progress(progress))
        done = finished(study)
    return _result(candidates, space, done, direction)


def _search(
    study: Any,
    candidates: Candidates,
    space: Space,
    score: Callable[[MergedAdapter], Any],
    trials: int,
    seed: int,
    timeout: float | None,
    direction: str,
    on_trial: Callable[[TuneTrial], None] | None,
    bars: Progress,
) -> None:
    """Trials until there are enough of them, or the time is over."""
    start = time.monotonic()
    done = finished(study)
    with bars.task("tuning", trials) as advance:
        advance(len(done))
        while len(done) < trials and (not done or timeout is None or time.monotonic() - start < timeout):
            best = best_of(done, direction)
            bars.note(f"trial {len(done)}" + ("" if best is None else f", best score {best.score:.6g}"))
            _trial(study, candidates, space, score, seed, done)
            done = finished(study)
            advance(1)
            if on_trial is not None:
                on_trial(done[-1])


def _trial(
    study: Any,
    candidates: Candidates,
    space: Space,
    score: Callable[[MergedAdapter], Any],
    seed: int,
    done: tuple[TuneTrial, ...],
) -> None:
    """One trial: the untuned merge first, then what the optimiser suggests. An interrupted one counts for nothing.

    Raises:
        TuningError: another process uses the study.
    """
    states = optuna().trial.TrialState
    start = time.perf_counter()
    trial = ask(study, seed, len(done))
    value, error = None, None
    try:
        values = space.suggest(trial) if done else {}
        known = next((t.score for t in done if t.score is not None and t.options == values), None)
        value = known if known is not None else _score(candidates, space.options(values), score)
    except Exception as raised:
        logger.info("trial %d failed", trial.number, exc_info=raised)
        error = _told(raised)
    except BaseException:
        study.tell(trial, state=states.FAIL)
        raise
    try:
        if error is not None:
            trial.set_user_attr("error", error)
        trial.set_user_attr("seconds", round(time.perf_counter() - start, 4))
        study.tell(trial, value, state=states.FAIL if error is not None else None)
    except RuntimeError as raised:  # optuna: the trial is finished; a class of its own in its later versions alone
        raise TuningError(
            f"tuning: another process has taken the study over and ended trial {trial.number}; one process at a time. "
            f"The finished trials are in the study; go on with it once the other one is done, or choose another file"
        ) from raised


def _score(candidates: Candidates, options: Mapping[str, Any], score: Callable[[MergedAdapter], Any]) -> float:
    found = score(candidates.merged(options))
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise TuningError(f"the score returned {found!r}, which is no number") from error
    if not math.isfinite(value):
        raise TuningError(f"the score is {value}, which is not finite")
    return value


def _told(error: Exception) -> str:
    """An exception in one line, with its place unless it is one of samerge's own."""
    text = " ".join(str(error).split())
    if isinstance(error, SamergeError):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({PurePath(last.filename).name}, line {last.lineno})"


def _result(
    candidates: Candidates, space: Space, done: tuple[TuneTrial, ...], direction: Literal["maximize", "minimize"]
) -> TuneResult:
    best = best_of(done, direction)
    if best is None or best.score is None:
        counted = Counter(trial.error for trial in done).most_common(3)
        listed = "; ".join(f"{count} times: {error}" for error, count in counted)
        raise TuningError(
            f"tuning: all {len(done)} trials failed, {listed}. Put that right and call again: a study of failed trials "
            f"alone is begun anew"
        )
    options = space.options(best.options)
    merged = candidates.exactly(options)
    default = next((trial.score for trial in done if not trial.options), None)
    search = space.record()
    record = {
        **merged.report.record,
        "tuning": tuning_record(done, best, default, direction, search),
        "warnings": [*merged.report.warnings, caution(best, default, len(done))],
    }
    merged = replace(merged, report=Report(record))
    return TuneResult(options, best.score, default, merged, done, direction, search)
