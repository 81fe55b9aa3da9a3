"""A score by a command: the candidate in a folder, the command run on it, a number on its last line."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samerge.errors import OptionError, TuningError
from samerge.merging.merged_adapter import MergedAdapter

PLACEHOLDER = "{adapter}"

#: Lines of a failed command's stderr that its message has.
_TAIL = 5


def by_command(command: str) -> Callable[[MergedAdapter], float]:
    """A score that a command prints.

    Args:
        command: as in a shell, but no shell runs it; `{adapter}` stands for the candidate's folder. The last line of
            its stdout is the score: a number, or JSON with a "score". Any exit code but 0 is a failed trial.

    Raises:
        OptionError: there is no `{adapter}` in it, or no such program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise OptionError(f"the command {command!r} cannot be split into words: {error}") from error
    if not any(PLACEHOLDER in word for word in words):
        raise OptionError(
            f"the command {command!r} does not say where the adapter goes; write {PLACEHOLDER} where its folder "
            f"belongs, as in 'python eval.py {PLACEHOLDER}'"
        )
    if shutil.which(words[0]) is None:
        raise OptionError(f"the command {command!r}: there is no program {words[0]!r}")

    def score(merged: MergedAdapter) -> float:
        with tempfile.TemporaryDirectory(prefix="samerge-tune-") as folder:
            saved = merged.save(Path(folder) / "adapter")
            line = [word.replace(PLACEHOLDER, str(saved)) for word in words]
            done = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            tail = " | ".join(done.stderr.strip().splitlines()[-_TAIL:]) or "nothing on stderr"
            raise TuningError(f"the command ended with exit code {done.returncode}: {tail}")
        return printed(done.stdout)

    return score


def printed(text: str) -> float:
    """The score on the last line of a text that is not blank.

    Raises:
        TuningError: it is neither a number nor JSON with a "score".

    Example:
        >>> printed("loading\\n0.75\\n"), printed('{"score": 0.5, "loss": 1.0}')
        (0.75, 0.5)
    """
    last = text.strip().rpartition("\n")[2]
    try:
        value: Any = json.loads(last)
        return float(value["score"] if isinstance(value, dict) else value)
    except (ValueError, TypeError, KeyError) as error:
        raise TuningError(
            f'the last line of the command is {last[:80]!r}; it must be a number, or JSON such as {{"score": 0.75}}'
        ) from error
