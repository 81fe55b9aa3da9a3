"""The base as models that can be run, and the adapted modules in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from samerge.errors import BaseModelError, OptionError
from samerge.merging.calibration.alone import base_alone
from samerge.weights import FolderSource, WeightSource
from samerge.weights.inside_peft import base_modules
from samerge.weights.pipeline import models_of


def runnable(base: object, source: WeightSource | None, device: torch.device) -> Any:
    """The base as it can be run: a live model or pipeline as it is, one in a folder loaded with transformers.

    Args:
        base: what the base was given as.
        source: its weights.
        device: where one that is loaded here goes.

    Raises:
        OptionError: no base was given.
        BaseModelError: transformers cannot load it.
    """
    if isinstance(base, nn.Module) or models_of(base):
        return base
    if not isinstance(source, FolderSource):
        raise OptionError("calibration runs the base model; give base: a folder, a hub id or a loaded model")
    import transformers

    # a configuration is a stranger's: no class but a model's, no code of its own, no pickles
    kinds = [getattr(transformers, str(name), None) for name in source.config.get("architectures") or ()]
    models = (one for one in kinds if isinstance(one, type) and issubclass(one, transformers.PreTrainedModel))
    kind: Any = next(models, transformers.AutoModel)
    safe = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        with _without_bars():
            model = kind.from_pretrained(source.folder, dtype="auto", **safe)
        return model.eval().to(device)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BaseModelError(
            f"calibration runs the base {source.name!r}, and transformers cannot load it ({reason}); in Python give "
            f"the loaded model as the base"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """While this lasts, transformers shows no bars of its own beside samerge's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def parts_of(model: Any) -> Mapping[str, nn.Module]:
    """A model under no name, or the models of a pipeline by theirs."""
    return {"": model} if isinstance(model, nn.Module) else models_of(model)


@contextmanager
def alone(model: Any) -> Iterator[None]:
    """While this lasts, nothing but the base runs (`base_alone`)."""
    with ExitStack() as stack:
        for part in parts_of(model).values():
            stack.enter_context(base_alone(part))
        yield


def adapted(model: Any, wanted: Collection[str]) -> dict[str, nn.Module]:
    """The modules that adapters change, by the names that the adapters have for them.

    An adapter may have been trained on the model without its head, or with one, so that names differ by what stands
    before them. A name that fits several modules is none.

    Args:
        model: live.
        wanted: names of modules.
    """
    there = {
        f"{part}.{one.name}" if part else one.name: one.module
        for part, model in parts_of(model).items()
        for one in base_modules(model)
    }
    endings: dict[str, list[str]] = {}
    for name in there:
        pieces = name.split(".")
        for start in range(len(pieces)):
            endings.setdefault(".".join(pieces[start:]), []).append(name)
    found = {}
    for name in wanted:
        pieces = name.split(".")
        shorter = (".".join(pieces[start:]) for start in range(len(pieces) - 1))
        fits = [name] if name in there else next((endings[one] for one in shorter if one in endings), [])
        if len(fits) == 1:
            found[name] = there[fits[0]]
    return found
