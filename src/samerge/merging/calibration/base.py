"""The base as models that can be run, and the adapted modules in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from samerge.errors import BaseModelError, OptionError, first_line
from samerge.merging.alignment.matching import differ
from samerge.merging.calibration.alone import base_alone
from samerge.options.module_names import joined
from samerge.weights import FolderSource, WeightSource
from samerge.weights.inside_peft import base_modules
from samerge.weights.pipeline import models_of

#: Parts at the end of a name by which two are taken for the same: a layer's number, a block, a projection.
_ALIKE = 3


def runnable(base: object, source: WeightSource | None, device: torch.device, wanted: Collection[str]) -> Any:
    """The base as it can be run: a live model or pipeline as it is, one in a folder loaded with transformers.

    Args:
        base: what the base was given as.
        source: its weights.
        device: where one that is loaded here goes.
        wanted: names of the adapted modules.

    Raises:
        OptionError: no base was given.
        BaseModelError: transformers cannot load it, or makes up a weight that is adapted.
    """
    if isinstance(base, nn.Module) or models_of(base):
        return base
    if not isinstance(source, FolderSource):
        raise OptionError(
            "calibration runs the base model; give base as a folder or a hub id of transformers, or in Python the "
            "loaded model or pipeline"
        )
    import transformers

    # a configuration is a stranger's: no class but a model's, no code of its own, no pickles
    kinds = [getattr(transformers, str(name), None) for name in source.config.get("architectures") or ()]
    models = (one for one in kinds if isinstance(one, type) and issubclass(one, transformers.PreTrainedModel))
    kind: Any = next(models, transformers.AutoModel)
    safe = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        # what the file lacks, such as a new head, is drawn at random, which is not to change anybody's numbers
        with _without_bars(), torch.random.fork_rng(devices=[]):
            model, loaded = kind.from_pretrained(source.folder, dtype="auto", output_loading_info=True, **safe)
        _check_whole(model, loaded["missing_keys"], wanted, source.name)
        return model.eval().to(device)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BaseModelError(
            f"calibration runs the base {source.name!r}, and transformers cannot load it ({first_line(error)}); in "
            f"Python give the loaded model as the base"
        ) from error


def _check_whole(model: nn.Module, missing: Collection[str], wanted: Collection[str], name: str) -> None:
    lacking = {id(model.get_submodule(weight.rpartition(".")[0])): weight for weight in missing}
    for module in adapted(model, wanted).values():
        if id(module) in lacking:
            raise BaseModelError(
                f"calibration runs the base {name!r}, whose files lack {lacking[id(module)]!r}, which is adapted; give "
                f"a whole base"
            )


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

    Adapters may have been trained on the model without its head, or with one, or by an older transformers, so that
    their names begin in another way: in one way for all of them, the one that fits most.

    Args:
        model: live.
        wanted: names of modules.
    """
    there = {
        joined(part, one.name): one.module for part, model in parts_of(model).items() for one in base_modules(model)
    }
    rest = [name for name in wanted if name not in there]
    found = {name: there[name] for name in wanted if name in there}
    began = None if found else _beginnings(rest, there)  # where some are named as the model names them, all are
    if began is not None:
        dropped, added = began
        for name in rest:
            full = added + name.removeprefix(dropped)
            if name.startswith(dropped) and full in there:
                found[name] = there[full]
    return found


def _beginnings(names: Collection[str], there: Collection[str]) -> tuple[str, str] | None:
    """What most names begin with, and what the model's begin with in its place; None where two fit as many.

    Example:
        >>> _beginnings(["layers.0.mlp.up", "layers.1.mlp.up"], ["model.layers.0.mlp.up", "model.layers.1.mlp.up"])
        ('', 'model.')
    """
    ends: dict[tuple[str, ...], list[str]] = {}
    for full in there:
        ends.setdefault(tuple(full.split(".")[-_ALIKE:]), []).append(full)
    votes: Counter[tuple[str, str]] = Counter()
    for name in names:
        votes.update(differ(name, full) for full in ends.get(tuple(name.split(".")[-_ALIKE:]), []))
    best = votes.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return None
    dropped, added = (f"{part}." if part else "" for part in best[0][0])
    return dropped, added
