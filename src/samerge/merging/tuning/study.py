"""The study: an optuna study in memory or in a file, from which an interrupted search goes on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samerge.errors import OptionError
from samerge.merging.tuning.identity import differences
from samerge.merging.tuning.result import TuneTrial

_NAME = "samerge"
_IDENTITY = "samerge"
_SQLITE = frozenset({".db", ".sqlite", ".sqlite3"})


def optuna() -> Any:
    """The optimiser's package.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import optuna as package
    except ImportError as error:
        raise OptionError("tuning needs optuna: pip install 'samerge[tune]'") from error
    return package


@contextmanager
def silent() -> Iterator[None]:
    """Keep optuna's own notes off the screen."""
    verbosity = optuna().logging.get_verbosity()
    optuna().logging.set_verbosity(optuna().logging.WARNING)
    try:
        yield
    finally:
        optuna().logging.set_verbosity(verbosity)


def open_study(storage: str | Path | None, direction: str, identity: Mapping[str, Any]) -> Any:
    """A new study, or the one that a file holds; trials that never ended are closed.

    A study of which every finished trial failed has nothing to go on from (a score that was broken, most often), and
    would count its failures as trials for ever: it is begun anew.

    Args:
        storage: a journal file, which is only ever appended to; an SQLite file, by its ending (.db, .sqlite, .sqlite3);
            an URL that optuna knows; None for a study in memory.
        direction: "maximize" or "minimize".
        identity: what the search is.

    Raises:
        OptionError: the file is no study, or that of another search.
    """
    package = optuna()
    place = None if storage is None else _storage(storage, package)
    if place is None or _NAME not in package.get_all_study_names(place):
        study = package.create_study(storage=place, study_name=_NAME, direction=direction)
    else:  # not by load_if_exists, which appends to a journal that may be another search's
        study = package.load_study(study_name=_NAME, storage=place)
        done = finished(study) if _IDENTITY in study.user_attrs else ()
        if done and all(trial.state == "failed" for trial in done):
            package.delete_study(study_name=_NAME, storage=place)
            study = package.create_study(storage=place, study_name=_NAME, direction=direction)
    then = study.user_attrs.get(_IDENTITY)
    if then is None:
        if study.trials:
            raise OptionError(f"the study {storage} was not begun by samerge; choose another file")
        study.set_user_attr(_IDENTITY, dict(identity))
        return study
    different = list(differences(then, json.loads(json.dumps(identity))))
    if different:
        raise OptionError(
            f"the study {storage} belongs to another search: {'; '.join(different[:4])}. Go on with what it was begun "
            f"with, choose another file (--study), or remove this one"
        )
    for trial in study.get_trials(deepcopy=False, states=(package.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=package.trial.TrialState.FAIL)
    return study


def finished(study: Any) -> tuple[TuneTrial, ...]:
    """The trials that ended by themselves; interrupted ones are left out."""
    states = optuna().trial.TrialState
    found = []
    for trial in study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL)):
        seconds, error = trial.user_attrs.get("seconds", 0.0), trial.user_attrs.get("error")
        if trial.state == states.COMPLETE:
            found.append(TuneTrial(trial.number, "complete", float(trial.value), dict(trial.params), seconds))
        elif error is not None:
            found.append(TuneTrial(trial.number, "failed", None, dict(trial.params), seconds, error))
    return tuple(found)


def ask(study: Any, seed: int, count: int) -> Any:
    """The next trial. What it suggests depends on the seed and the finished trials alone.

    So a search that was interrupted goes on just as if it had not been.

    Args:
        study: the study.
        seed: of the search.
        count: how many trials are finished.
    """
    import numpy

    package = optuna()
    state = int(numpy.random.SeedSequence([seed, count]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # grouping is called experimental; without it trial 0 would empty the space
        study.sampler = package.samplers.TPESampler(seed=state, multivariate=True, group=True, constant_liar=False)
    return study.ask()


def _storage(given: str | Path, package: Any) -> Any:
    text = str(given)
    if "://" in text:
        return text
    path = Path(os.path.abspath(Path(text).expanduser()))
    if not path.parent.is_dir():
        raise OptionError(f"the study {given}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise OptionError(f"the study {given} is a folder; give a file")
    if path.suffix.lower() in _SQLITE:
        if path.exists() and path.stat().st_size and _first_bytes(path) != b"SQLite format 3":
            raise OptionError(f"the study {given} is no SQLite file; choose another name")
        return package.storages.RDBStorage(f"sqlite:///{path}")
    _mend(path, str(given))
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # A link cannot be made everywhere on Windows; an exclusively opened file can.
    lock = JournalFileOpenLock(str(path)) if os.name == "nt" else None
    return package.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(15)


def _mend(path: Path, given: str) -> None:
    """Check that a file is a journal, and take off a last line that a dying machine left half written.

    Raises:
        OptionError: it is no journal.
    """
    if not path.exists() or not path.stat().st_size:
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        good = all("op_code" in json.loads(line) for line in (whole or data).splitlines())
    except (ValueError, TypeError):
        good = not whole and data.startswith(b'{"op_code"')
    if not good:
        raise OptionError(f"the study {given} is no study of samerge, or damaged; choose another file")
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
