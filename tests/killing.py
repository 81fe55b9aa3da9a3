"""Merges that are killed: `python tests/killing.py FOLDER FIRST COUNT` prints a JSON line for each.

This process imports everything once and is then copied (fork) for every case, so that a case is a merge and no start of
Python. A case is a number: it says the signal, whether there was an output before, and when the signal comes, which is
at one of the calls by which the writer changes the disk, or after a random time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz_zoo import make_zoo

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def hear_interrupts() -> None:
    """For a process that is started: what runs in the background ignores interrupts, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


#: Calls by which the writer changes the disk, in the order in which a merge makes them the first time.
CALLS = ("mkdir", "flock", "_save", "chmod", "write_text", "fsync", "check_free", "exchange", "rename", "rmtree")


def case(number: int, zoo: Path, work: Path) -> str:
    """Run one; what is wrong afterwards, or nothing."""
    random = Random(number)
    sent, before = SIGNALS[number % 3], random.random() < 0.6
    target = work / "parent" / "out"
    if before:
        _in_child(lambda: _merge(zoo, target, "math"))
    old = _content(target)
    call, at = random.choice(CALLS), random.choice((1, 1, 2, 3))
    delay = random.uniform(0, 0.4) if number % 2 else None
    status = _in_child(lambda: _killed(zoo, target, sent, call, at, delay), delay, sent)
    when = f"after {delay:.2f} s" if delay is not None else f"at {call} {at}"
    told = f"{number}: {sent.name} {when}, output before: {before}, ended as {status}: "
    now = _content(target)
    if now is None and before:
        return told + "the old output is gone"
    if now is not None and now != old and not _whole(target):
        return told + "the output is neither the old one nor whole"
    left = [path.name for path in work.rglob(".*.tmp")] + [path.name for path in work.rglob(".*.old")]
    if left and sent != signal.SIGKILL:
        return told + f"left {left}"
    _in_child(lambda: _merge(zoo, target, "code"))
    if not _whole(target):
        return told + "the next run did not write"
    left = sorted(path.name for path in target.parent.iterdir() if path != target)
    shutil.rmtree(work / "parent")
    return told + f"the next run left {left}" if left else ""


def _merge(zoo: Path, target: Path, name: str) -> int:
    from typer.testing import CliRunner

    from samerge.cli import app

    words = ["merge", "--adapter", f"a={zoo / name}", "--method", "linear", "--out", str(target), "--overwrite"]
    return CliRunner().invoke(app, [*words, "--quiet"]).exit_code


def _killed(zoo: Path, target: Path, sent: int, call: str, at: int, delay: float | None) -> int:
    """A merge that gets a signal at a call of the writer, or whenever the parent sends it."""
    if delay is None:
        owner, name = _owner(call)
        real, count = getattr(owner, name), [0]

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), sent)
            return real(*args, **kwargs)

        setattr(owner, name, wrapper)
    return _merge(zoo, target, "code")


def _owner(call: str) -> tuple[Any, str]:
    import fcntl

    from samerge.adapters import atomic, writer

    owners: dict[str, Any] = {"mkdir": Path, "write_text": Path, "flock": fcntl, "rmtree": shutil}
    owners |= {"_save": writer, "check_free": atomic, "exchange": atomic}
    return owners.get(call, os), call


def _in_child(work: Callable[[], int], delay: float | None = None, sent: int = 0) -> int:
    """Do something in a copy of this process; its exit code, negative for a signal. It gets one after `delay`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = work()
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, sent)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _content(folder: Path) -> dict[str, str] | None:
    if not folder.is_dir():
        return None
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _whole(folder: Path) -> bool:
    """Whether every file is there with the digest that the record has of it."""
    found = _content(folder) or {}
    if "samerge.json" not in found:
        return False
    recorded = json.loads((folder / "samerge.json").read_text())["files"]
    return {**recorded, "samerge.json": found["samerge.json"]} == found and "adapter_model.safetensors" in recorded


def main(folder: str, first: str, count: str) -> None:
    zoo, work = Path(folder) / "zoo", Path(folder) / "work"
    zoo.mkdir()
    work.mkdir()
    make_zoo(zoo)
    _merge(zoo, work / "warm", "math")
    shutil.rmtree(work / "warm")
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps({"case": number, "wrong": case(number, zoo, work)}), flush=True)
        shutil.rmtree(work / "parent", ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
