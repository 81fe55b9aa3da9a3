"""A script in groups of processes of several sizes, one after the other, that all descend from one process.

    python forked.py 1,2,4 SCRIPT ARGUMENT ...

As `torchrun` does, but the imports, which take longer than the merges, are made once for all.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401 - so that no child has to
import torch
import torch.distributed
import transformers  # noqa: F401

import samerge  # noqa: F401


def child(script: Path, rank: int, size: int, port: int) -> int:
    """Run the script as one process of a group; its exit status."""
    if size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    try:
        exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def group(script: Path, size: int) -> None:
    """Start a group and wait for it; the first that fails ends the others, which would wait for it for ever."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    living = set()
    for rank in range(size):
        if (pid := os.fork()) == 0:
            status = child(script, rank, size, port)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        living.add(pid)
    while living:
        pid, status = os.wait()
        living.discard(pid)
        if status:
            for other in living:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a process of the group of {size} has failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, sizes, *sys.argv = sys.argv  # the script sees its own name and arguments
    for number in sizes.split(","):
        group(Path(sys.argv[0]), int(number))
