"""What a study was begun with, as plain JSON, so that it is never gone on with for another search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from samerge.adapters import Adapter
from samerge.merging.tuning.candidates import Candidates
from samerge.merging.tuning.space import Space
from samerge.weights import ModelSource, WeightSource


def identity(candidates: Candidates, space: Space, direction: str, score: str) -> dict[str, Any]:
    """Base, adapters, fixed options, search space, direction and score.

    The recipe is among the options where nothing is named, too: one begun under another default is another study.

    The base is told by its shapes and the first row of every weight, adapters by their configuration and all their
    values. Names of folders do not count: a study may move with its files.
    """
    base = candidates.base
    source = ModelSource(base) if isinstance(base, torch.nn.Module) else base
    return {
        "base": None if source is None else _of_base(source),
        "adapters": {adapter.name: _of_adapter(adapter) for adapter in candidates.adapters},
        "options": {name: _plain(value) for name, value in sorted(space.given().items())},
        "search": space.record(),
        "direction": direction,
        "score": score,
    }


def name_of(score: Callable[..., Any]) -> str:
    """What to call a score: module and name of a function, the class of anything else."""
    while isinstance(score, partial):
        score = score.func
    named = score if hasattr(score, "__qualname__") else type(score)
    return f"{named.__module__}:{named.__qualname__}"


def differences(then: Any, now: Any, where: str = "") -> Iterator[str]:
    """Where two identities differ, in words.

    Example:
        >>> list(differences({"search": {"rank": [4]}, "base": "a"}, {"search": {"rank": [8]}, "base": "a"}))
        ['search.rank was [4] and is [8]']
    """
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in [*then, *(key for key in now if key not in then)]:
            name = f"{where}.{key}" if where else str(key)
            if key not in now:
                yield f"{name} was {_short(then[key])} and is not given"
            elif key not in then:
                yield f"{name} was not given and is {_short(now[key])}"
            else:
                yield from differences(then[key], now[key], name)
    elif then != now:
        yield f"{where} was {_short(then)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_base(source: WeightSource) -> str:
    digest = hashlib.sha256()
    for name, shape in sorted(source.shapes.items()):
        digest.update(f"{name} {tuple(shape)} ".encode())
        if all(shape):
            digest.update(_bytes(source.read(name, 0, 1) if len(shape) < 3 else source.read(name, 0, 1, 0)))
    return f"weights {digest.hexdigest()[:16]}"


def _of_adapter(adapter: Adapter) -> str:
    digest = hashlib.sha256(str(adapter.sha256).encode())
    for name, module in adapter.modules.items():
        factors = module.load()
        digest.update(f"{name} {factors.scale!r}".encode())
        if adapter.sha256 is None:
            digest.update(_bytes(factors.A) + _bytes(factors.B))
    return f"weights {digest.hexdigest()[:16]}"


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()


def _plain(value: Any) -> Any:
    """JSON as it is; anything else (a graph, a dtype) by its text, long ones by its digest."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    text = str(value)
    return text if len(text) < 60 else f"{type(value).__name__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
