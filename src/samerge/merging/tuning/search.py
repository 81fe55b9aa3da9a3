"""`tune`: candidates merged in memory, scored by the caller, chosen by optuna."""

from __future__ import annotations

import json
import os
import time
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import finalize

from torch import nn
from typing_extensions import Unpack

from samerge.errors import OptionError, SamergeError
from samerge.merging.inputs import AdapterLike, open_base
from samerge.merging.plan import Weights
from samerge.merging.same_inputs import SameInputs
from samerge.merging.tuning.on_model import check_model, on_model
from samerge.merging.tuning.result import TuneResult, TuneTrial, finished, result_of
from samerge.merging.tuning.scoring import raised, scored
from samerge.merging.tuning.space import Space, planned, space_of
from samerge.methods.keywords import MergeKeywords
from samerge.options.kinds import check_number, check_whole
from samerge.parallel.progress import Progress

Score = Callable[[Any], Any]


def tune(
    base: str | Path | nn.Module | None,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    score: Score,
    *,
    method: str | None = None,
    weights: Weights = None,
    trials: int = 30,
    search: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    search_seed: int = 0,
    storage: str | Path | None = None,
    timeout: float | None = None,
    direction: Literal["maximize", "minimize"] = "maximize",
    on_trial: Callable[[TuneTrial], None] | None = None,
    progress: bool = True,
    **options: Unpack[MergeKeywords],
) -> TuneResult:
    """Search the options of a merge by a score on labelled data.

    The untuned merge is the first trial, so what is found is never worse than it on this data. Base and adapters are
    opened once. A trial that fails is recorded with its message, and the search goes on.

    Args:
        base: as for `merge`.
        adapters: as for `merge`.
        score: called with the `MergedAdapter` of a candidate; or, with `model`, with the model, on which the candidate
            is the active adapter. Returns a finite number; anything else is a failed trial.
        method: as for `merge`; where methods are searched, that of the untuned merge.
        weights: as for `merge`; where weights are searched, those of the untuned merge.
        trials: how many in all, the untuned one and those that `storage` holds already among them; failed ones of an
            earlier call do not count.
        search: what is searched, by option: a pair of bounds, or a list of values. Any option of `merge`, "method",
            "weights" for the weight of every adapter, "weights.<name>" for one. Bounds that lie a factor of 10 or more
            apart are searched on a log scale, weights never. By default scaling (0.1, 2.0), density (0.05, 1.0) where
            the method has it and no `rank` is given, weights (0.0, 2.0).
        model: a live `PeftModel` of the base; it is as before after every trial. Its own mode (train or eval) holds.
        search_seed: of the optimiser; the same seed and scores give the same trials.
        storage: a study to go on from, in optuna's own storage: a journal file (append-only), or an URL such as
            "sqlite:///study.db". One process at a time.
        timeout: seconds after which no further trial is begun.
        direction: whether the score is to be large or small.
        on_trial: called after every trial.
        progress: show a progress bar when on a terminal.
        **options: other options of `merge`, the same in all trials whose method has them; where one is searched, too,
            it is the untuned value.

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
    trials, search_seed = check_whole("trials", trials), check_whole("search_seed", search_seed, least=0)
    if direction not in ("maximize", "minimize"):
        raise OptionError(f"direction={direction!r} is not known; choose one of maximize, minimize")
    if timeout is not None and check_number("timeout", timeout) <= 0:
        raise OptionError(f"timeout={timeout} must be above 0 seconds")
    package = _optuna()
    if model is not None:
        check_model(model)
        score = on_model(model, score)
    inputs = SameInputs(base, adapters)
    space = space_of(search, {**options, "method": method, "weights": weights}, inputs.names)
    untuned = planned(space.options({}))
    if untuned.named and untuned.method.base == "needed" and "method" not in space.search:
        open_base(inputs.base, required=True)
    bars = Progress(progress)
    with _silent(package):
        study = _open(package, storage, direction, {"search": space.record(), **_identity(inputs, space)})
    before = finished(study)
    complete = [trial for trial in before if trial.score is not None]

    def run(values: Callable[[Any], Mapping[str, Any]], count: int) -> None:
        def objective(trial: Any) -> float:
            try:
                return scored(inputs.merged(planned(space.options(values(trial))), Progress(False)), score)
            except Exception as error:
                trial.set_user_attr("error", _told(error))
                raise

        def after(_: Any, __: Any) -> None:
            advance(1)
            done = finished(study)
            best = max if direction == "maximize" else min
            scores = [trial.score for trial in done if trial.score is not None]
            bars.note(f"best score {best(scores):.6g}" if scores else "")
            if on_trial is not None:
                on_trial(done[-1])

        left = None if end is None else end - time.monotonic()
        if left is None or left > 0:
            study.optimize(objective, n_trials=count, timeout=left, catch=(Exception,), callbacks=[after])

    end = None if timeout is None else time.monotonic() + timeout
    study.sampler = package.samplers.TPESampler(seed=search_seed + len(before))
    with bars.task("tuning", trials) as advance, _silent(package), python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # optuna's of every failed trial; the merge's own come with the result
        advance(len(complete))
        first = 0 if any(not trial.options for trial in complete) else 1  # the untuned merge
        rest = trials - len(complete) - first
        if first:
            run(lambda trial: {}, 1)
        if rest > 0:
            run(space.suggest, rest)
    return result_of(finished(study), direction, space, lambda best: inputs.merged(planned(best), Progress(False)))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise OptionError("tuning needs optuna: pip install 'samerge[tune]'") from error
    return optuna


@contextmanager
def _silent(package: Any) -> Iterator[None]:
    """Keep optuna's own notes off the screen."""
    verbosity = package.logging.get_verbosity()
    package.logging.set_verbosity(package.logging.ERROR)
    try:
        yield
    finally:
        package.logging.set_verbosity(verbosity)


def _identity(inputs: SameInputs, space: Space) -> dict[str, Any]:
    return {
        "adapters": {adapter.name: str(adapter.source) for adapter in inputs.adapters},
        "options": {name: str(value) for name, value in space.fixed.items()},
    }


def _open(package: Any, storage: str | Path | None, direction: str, identity: Mapping[str, Any]) -> Any:
    """A new study, or the one that is kept.

    Raises:
        OptionError: there is something else, or the study of another search.
    """
    kept: Any = storage
    try:
        if storage is not None and "://" not in str(storage):
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

            path = os.path.abspath(Path(storage).expanduser())
            if os.path.exists(path) and not Path(path).read_bytes().startswith(b'{"op_code"'):
                raise ValueError("it is no journal of optuna")
            # A link cannot be made everywhere on Windows; an exclusively opened file can.
            lock = JournalFileOpenLock(path) if os.name == "nt" else None
            kept = JournalStorage(JournalFileBackend(path, lock_obj=lock))
        elif storage is not None and not str(storage).startswith("redis"):
            kept = package.storages.RDBStorage(str(storage))
        study = package.create_study(storage=kept, study_name="samerge", direction=direction, load_if_exists=True)
    except Exception as error:  # a file's, SQLAlchemy's or optuna's own, by storage
        raise OptionError(f"the study {storage} cannot be opened ({error}); choose another file") from error
    if hasattr(kept, "engine"):  # a database: optuna leaves its connections open
        finalize(study, kept.engine.dispose)
    now = json.loads(json.dumps({**identity, "direction": direction}))
    if not study.trials:
        study.set_user_attr("samerge", now)
    then = study.user_attrs.get("samerge", {})
    if then != now:
        other = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        raise OptionError(
            f"the study {storage} belongs to another search, with another {', another '.join(other)}. Go on with what "
            f"it was begun with, choose another file, or remove this one"
        )
    return study


def _told(error: Exception) -> str:
    """An exception in one line, with its place unless it is one of samerge's own."""
    return " ".join(str(error).split()) if isinstance(error, SamergeError) else raised(error)
