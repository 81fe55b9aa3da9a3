"""Run the base, and say for each adapted module what its inputs are like (`samerge.linalg.metric`).

An update tau is merged as tau S and taken back by S^-1: what an adapter does to inputs that there are counts more than
what it does to those that never come, and weights alone do not tell them apart. RegMean (Jin et al. 2023,
arXiv 2212.09849) solves for the same second moments; the metric lies half-way between them and the weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError, OptionError, first_line
from samerge.linalg.metric import Metric, metric
from samerge.merging.calibration import texts
from samerge.merging.calibration.base import adapted, alone, runnable
from samerge.merging.calibration.samples import Samples
from samerge.methods.problem import Site
from samerge.options.calibration import Calibration
from samerge.parallel.progress import Progress
from samerge.weights import WeightSource
from samerge.weights.inside_peft import unwrap

#: Positions below which a module's inputs tell too little: an expert that was hardly chosen, a head.
LEAST = 8
#: Positions from which on more made no difference to what was kept.
ENOUGH = 512


@dataclass(frozen=True)
class Metrics:
    """In which metric of its inputs the updates of each module are merged.

    Args:
        of: S by module, of those that were seen.
        notes: what was run, and how many modules were not seen.
    """

    of: Mapping[str, Metric] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def calibrate(
    given: Calibration,
    sites: Sequence[Site],
    base: object,
    source: WeightSource | None,
    device: torch.device,
    bars: Progress,
) -> Metrics:
    """Run the base on what was given.

    Args:
        given: the inputs.
        sites: the adapted modules.
        base: what the base was given as; a live model or pipeline is run as it is, without its adapters.
        source: its weights; a base in a folder is loaded with transformers.
        device: where a base that is loaded here runs.
        bars: where to report progress.

    Raises:
        OptionError: no base was given, the inputs cannot be read or do not suit it, or no adapted module took part.
        BaseModelError: the base cannot be loaded or run, or gives numbers that are none.
        AdapterError: adapters are merged into a live base.
    """
    read = texts.read_texts(given.file) if given.file is not None else list(given.texts)[: texts.MOST_TEXTS]
    names = [site.module for site in sites]
    with bars.task("loading", 1):
        model = runnable(base, source, device, names)
    modules = _suitable(sites, adapted(model, names))
    seen = Samples(modules)
    with alone(model), seen.watching():
        told = _run(given, read, model, base, modules.values(), bars)
    del model, modules  # one that was loaded here is wanted no more
    metrics: dict[str, Metric] = {}
    most = 0
    groups = seen.groups()
    with bars.task("measuring", len(groups)) as advance:
        for group in groups:
            rows = seen.rows(group[0])
            most = max(most, len(rows))
            one = _metric(group[0], rows)
            metrics |= {} if one is None else dict.fromkeys(group, one)
            advance(1)
    if not metrics:
        raise OptionError(
            f"calibration: the base was run on {told}, and no linear layer or convolution that is adapted took {LEAST} "
            f"positions or more; give more or longer inputs, or merge without calibration"
        )
    left = [site.module for site in sites if site.module not in metrics]
    without = f"; {len(left)} of {len(sites)} modules go without, such as {left[0]}" if left else ""
    few = f"; {most} positions are few, and {ENOUGH} or more would tell better what the layers take"
    short = few if most < ENOUGH else ""
    return Metrics(metrics, (f"calibration: the base was run on {told}{without}{short}",))


def _run(
    given: Calibration, read: Sequence[Any], model: Any, base: object, modules: Collection[nn.Module], bars: Progress
) -> str:
    """Run the model; what it was run on, in words."""
    if given.run is not None:
        with bars.task("calibrating", 1):
            given.run(model)
        return "inputs of a function"
    inner: Any = unwrap(model) if isinstance(model, nn.Module) else model
    texts.embeddings_of(inner)
    if read:
        rows = texts.tokenised(read, texts.tokenizer_of(inner, base), texts.longest_of(inner, texts.MOST_TOKENS))
    else:
        rows = texts.drawn(inner)
    head = getattr(inner, "get_output_embeddings", lambda: None)()
    head = getattr(head, "base_layer", head)
    tokens = sum(one.numel() for one in rows)
    try:
        with bars.task("calibrating", len(rows)) as advance:
            texts.on_ids(inner, rows, advance, head=any(one is head for one in modules))
    except Exception as error:  # whatever a model's own code raises
        raise BaseModelError(
            f"calibration: running the base {type(inner).__name__} on {tokens} tokens failed: {first_line(error)}"
        ) from error
    if not read:
        return f"{tokens} tokens drawn at random"
    return f"{len(rows)} texts of {tokens} tokens{f' of {given.file.name}' if given.file is not None else ''}"


def _suitable(sites: Sequence[Site], modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that multiply what they take with their weight, as the sites have it; the others have no metric."""
    found = {}
    for site in sites:
        module, kind = modules.get(site.module), site.layout.kind
        weight = getattr(module, "weight", None)
        wide = getattr(module, "in_features", None)  # quantised ones have no weight of its shape
        if wide is None and isinstance(weight, Tensor):
            wide = weight.shape[0 if site.layout.transposed else -1]
        if module is None or wide is None:
            continue
        convolves = isinstance(module, nn.Conv2d) and module.groups == 1
        if (kind == "linear" and wide == site.shape[1]) or (kind == "conv" and convolves):
            found[site.module] = module
    return found


def _metric(module: str, rows: Tensor) -> Metric | None:
    """S of a module, None where there were too few inputs to tell.

    Raises:
        BaseModelError: what it takes is not a number, or infinite.
    """
    if not bool(rows.isfinite().all()):
        raise BaseModelError(
            f"calibration: what the base hands to {module} is not finite; run it in another dtype (a loaded model as "
            f"the base), or merge without calibration"
        )
    return metric(rows) if len(rows) >= LEAST else None
