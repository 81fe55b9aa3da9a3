"""What the caller may give for a base, adapters, weights and a dtype, and what it is turned into."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, TypeVar

import torch
from torch import nn

from samerge.adapters import Adapter, live_adapter
from samerge.adapters.companions import weight_files
from samerge.adapters.formats.table import read_any
from samerge.adapters.live_pipeline import adapters_on, pipeline_adapter
from samerge.errors import OptionError, first_line
from samerge.merging.in_memory import as_adapter
from samerge.merging.merged_adapter import MergedAdapter
from samerge.options.kinds import check_strength
from samerge.weights import FolderSource, ModelSource, WeightSource
from samerge.weights.hub import default_name, files_beside, resolve_adapter, resolve_base
from samerge.weights.pipeline import Pipeline, PipelineSource, models_of
from samerge.weights.published import published

AdapterLike = str | Path | Adapter | MergedAdapter
BaseLike = str | Path | nn.Module | Pipeline
Given = TypeVar("Given")


def open_base(base: BaseLike | FolderSource | None, required: bool) -> WeightSource | None:
    """Where the base's weights come from.

    Args:
        base: a folder, a hub id, a loaded model or pipeline, a folder that is open already, or None.
        required: whether the method reads the base.

    Raises:
        OptionError: it is needed and was not given.
        BaseModelError: it cannot be read.
        HubError: it could not be downloaded.
    """
    if isinstance(base, nn.Module):
        return ModelSource(base)
    if models_of(base):
        return PipelineSource(base)  # type: ignore[arg-type]
    if isinstance(base, FolderSource):
        return base
    if base is None:
        if required:
            raise OptionError(
                "this method reads the base model; give base: a folder, a hub id or a loaded model. The method even "
                "does without"
            )
        return None
    return FolderSource(resolve_base(str(base)), name=str(base))


def open_adapters(
    base: BaseLike | FolderSource | None, adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike]
) -> list[Adapter]:
    """The adapters, read up to their tensors' values.

    Args:
        base: where names of live adapters are looked up when it is a `PeftModel`, or a pipeline.
        adapters: name -> folder, hub id, `Adapter` or `MergedAdapter`, or a list of these.

    Raises:
        OptionError: none given, or a name twice.
        AdapterError: one cannot be read or is not a plain LoRA.
        HubError: one could not be downloaded.
    """
    return [replace(_open_adapter(base, name, adapter), name=name) for name, adapter in named(adapters, "adapters")]


def named(given: Mapping[str, Given] | Sequence[Given], what: str) -> list[tuple[str, Given]]:
    """What is to be merged, each with a name: its own in a mapping, else the last part of its path.

    Args:
        given: name -> folder, hub id or object, or a list of these.
        what: what they are called in messages, in the plural.

    Raises:
        OptionError: none given, a single one that is not in a list, or a name twice.

    Example:
        >>> named(["ada/math-lora", "runs/code/"], "adapters")
        [('math-lora', 'ada/math-lora'), ('code', 'runs/code/')]
    """
    if isinstance(given, (str, Path)):
        raise OptionError(f"{what}={str(given)!r} is a single one; give a list or a mapping of name to folder")
    if not isinstance(given, (Mapping, Iterable)):
        raise OptionError(f"{what}={given!r} is none; give a list or a mapping of name to folder")
    items = list(given.items()) if isinstance(given, Mapping) else [(default_name_of(item), item) for item in given]
    if not items:
        raise OptionError(f"{what} is empty; give at least one")
    names = [name for name, _ in items]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        kind = what.removesuffix("s")
        raise OptionError(f"the {kind} name {double[0]!r} occurs more than once; give different names, as a mapping")
    return items


def _open_adapter(base: BaseLike | FolderSource | None, name: str, adapter: AdapterLike) -> Adapter:
    if isinstance(adapter, Adapter):
        return adapter
    if isinstance(adapter, MergedAdapter):
        return as_adapter(adapter, name)
    live: Any = getattr(base, "peft_config", None) if isinstance(base, nn.Module) else None
    read: Any = live_adapter
    if models_of(base):
        live, read = adapters_on(base), pipeline_adapter  # type: ignore[arg-type]
    here = isinstance(adapter, str) and not ("/" in adapter or Path(adapter).exists())
    if live is not None and (here or adapter in live):
        return read(base, adapter)  # type: ignore[no-any-return]
    if not isinstance(adapter, (str, os.PathLike)):
        raise OptionError(f"adapter {name!r} is {type(adapter).__name__}; give a folder, a file or a hub id")
    return _from_hub(name, str(adapter))


def _from_hub(name: str, source: str) -> Adapter:
    path = resolve_adapter(source)
    beside = published(path, source, f"the adapter {name!r}")
    adapter = read_any(path, name, source)
    adapter = replace(adapter, published=beside, notes=(*adapter.notes, *beside.notes))
    if path.is_file():
        return adapter
    there = {path / file for file in weight_files(files_beside(source)) if file != adapter.weights_name}
    return replace(adapter, companions=tuple(sorted({*adapter.companions, *there})))


def default_name_of(given: Any) -> str:
    """What an adapter or a model is called where nobody gives it a name.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(given, Adapter):
        return given.name
    if isinstance(given, MergedAdapter):
        return "merged"
    if isinstance(given, nn.Module):
        path = str(getattr(getattr(given, "config", None), "name_or_path", "") or "")
        return PurePath(path).name or type(given).__name__
    if models_of(given):
        return type(given).__name__
    if not isinstance(given, (str, os.PathLike)):
        raise OptionError(f"{given!r} is no adapter; give a folder, a file or a hub id")
    return default_name(given if isinstance(given, Path) else str(given))


def weights_of(
    weights: Mapping[str, float] | Sequence[float] | str | None,
    names: Sequence[str],
    what: str = "adapter",
    rules: Collection[str] = (),
) -> tuple[float, ...]:
    """One finite weight for each adapter (or whatever `what` is), in their order; 1.0 each by default.

    Args:
        weights: by name, or in order.
        names: of the adapters.
        what: what they are.
        rules: words that would have been taken, too, for messages.

    Raises:
        OptionError: too few, too many, an unknown name, or not a number.
    """
    if isinstance(weights, str):
        words = "".join(f", or {rule!r}" for rule in rules)
        raise OptionError(f"weights={weights!r} is not known; give a number for each {what}{words}")
    if weights is None:
        return (1.0,) * len(names)
    if isinstance(weights, Mapping):
        unknown = sorted(set(weights) - set(names))
        lacking = [name for name in names if name not in weights]
        if unknown or lacking:
            raise OptionError(
                f"weights must name every {what} and no other: "
                f"{f'no {what} is called {unknown}' if unknown else f'none given for {lacking}'}; "
                f"{what}s: {list(names)}"
            )
        return tuple(check_strength(f"weights[{name!r}]", weights[name]) for name in names)
    if not isinstance(weights, Sequence):
        raise OptionError(f"weights={weights!r} is a single one; give a list, or a mapping of name to weight")
    if len(weights) != len(names):
        raise OptionError(f"{len(weights)} weights for {len(names)} {what}s {list(names)}; give one for each")
    return tuple(check_strength(f"weights[{i}]", weight) for i, weight in enumerate(weights))


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype by its name.

    Raises:
        OptionError: no such dtype.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise OptionError(f"dtype={dtype!r} is not known; choose one of float32, bfloat16, float16, float64")
    return found


def device_of(device: str | torch.device | None, default: object = "cpu") -> torch.device:
    """A device that can be computed on, by its name.

    Args:
        device: its name, as in "cuda:1"; None for the default.
        default: that of what was given, such as a live model's own.

    Raises:
        OptionError: no such device, or none on this machine.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    if device is None:
        return torch.device(str(default))
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.zeros(1, device=found)
            return found
        reason = "it holds no values"
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = first_line(error).partition(". ")[0]
    raise OptionError(f"device={str(device)!r} cannot be computed on here ({reason}); leave it out, or use cpu")
