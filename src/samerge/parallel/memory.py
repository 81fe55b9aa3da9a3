"""How much memory is free where something is to be computed, as far as the system tells."""

from __future__ import annotations

from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be had on a device now; None where nobody tells.

    On Linux what the system can give without swapping, or what the process's control group may still have, if less.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = [size for size in (_of_the_system(), _of_the_group()) if size is not None]
    return min(known, default=None)


def _of_the_system(file: Path = Path("/proc/meminfo")) -> int | None:
    if not file.exists():
        return None
    for line in file.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _of_the_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of a control group (version 2) leaves; caches of files can be had, too."""
    limit, used, stat = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.exists() and used.exists() and stat.exists()) or limit.read_text().strip() == "max":
        return None
    cached = dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", "0")
    return max(0, int(limit.read_text()) - int(used.read_text()) + int(cached))
