"""`compress_adapter`: an adapter to a smaller one, exactly through its factors (`samerge.linalg.truncation`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from samerge.adapters import Adapter
from samerge.adapters.install import refuse_taken
from samerge.errors import OptionError
from samerge.linalg.triplets import singular
from samerge.linalg.truncation import truncate
from samerge.merging.alignment import assemble
from samerge.merging.alignment.spelling import together
from samerge.merging.conversion.dora import check_dora, converted
from samerge.merging.finish import Finisher
from samerge.merging.inputs import AdapterLike, BaseLike, open_adapters, open_base
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import Plan
from samerge.merging.trained_parts import check_extras
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site, iterate
from samerge.options.common import CommonOptions
from samerge.options.kinds import check_share, check_whole, share
from samerge.options.option import Options, filled, option
from samerge.parallel.progress import Progress
from samerge.weights import WeightSource


@dataclass(frozen=True)
class Size:
    """How large an adapter shall be.

    Args:
        rank: no layer has a larger one.
        energy: no layer keeps more components than this share of its squared norm needs.
        doing: what it is for, for messages.

    Raises:
        OptionError: neither is given, or one is out of its range.
    """

    rank: int | None
    energy: float | None
    doing: str

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise OptionError(
                f"{self.doing} needs a size: give rank=, the largest rank of any layer; energy=, the share of each "
                f"layer's squared norm to keep, such as 0.95; or both"
            )
        if self.rank is not None:
            object.__setattr__(self, "rank", check_whole("rank", self.rank))
        if self.energy is not None:
            object.__setattr__(self, "energy", check_share("energy", self.energy))


@dataclass(frozen=True)
class SizeOptions(Options):
    """The size as options, for the record."""

    energy: float | None = option(share(), None, "Share of each layer's squared norm that is kept.")


def compress_adapter(
    adapter: AdapterLike,
    rank: int | None = None,
    *,
    energy: float | None = None,
    base: BaseLike | None = None,
    adapter_name: str | None = None,
    dtype: torch.dtype | str | None = None,
    modules_to_save: str | None = None,
    dora: str | None = None,
    progress: bool = True,
) -> MergedAdapter:
    """Bring a LoRA adapter to a smaller rank: in every layer the best approximation there is.

    The singular values of s B A are those of a small core between two QR factorisations, so no dense update is made.
    The result has one rank for all layers, the largest that any of them needs; others are padded with zeros. The report
    says each layer's own rank and what it lost.

    Args:
        adapter: a folder or hub id; with a `PeftModel` as the base, the name of its adapter.
        rank: no layer gets a larger one.
        energy: every layer gets the smallest rank that keeps this share of its squared norm, in (0, 1]; together with
            `rank`, not more than that.
        base: the base model: a folder, a hub id, or a loaded model. Needed for adapters with trained biases or DoRA,
            and for layers of the base that the adapter lacks to be filled in with zeros.
        adapter_name: with a `PeftModel` as the base, put the result on it under this name.
        dtype: of the output; the adapter's own by default. Computed in float64.
        modules_to_save: "drop" leaves fully trained modules and token rows out; they are kept by default, as are files
            of weights beside the adapter.
        dora: "exact" or "exact:<rank>" converts a DoRA adapter on the way.
        progress: show progress bars when on a terminal.

    Returns:
        The smaller adapter, as `samerge.merge` returns its own: `.report`, `.save(path)`, `.apply_to(model, name)`.

    Raises:
        OptionError: neither rank nor energy, or one is out of its range.
        AdapterError: the adapter cannot be read or is not a plain LoRA.
        BaseModelError: the base cannot be read, or the adapter does not fit it.
        OutputExistsError: `adapter_name` is taken.
        HubError: a download failed.

    Example:
        ```python
        small = samerge.compress_adapter("ada/math-lora-r64", energy=0.95)
        small.save("math-small/")
        ```
    """
    size = Size(rank, energy, "compressing an adapter")
    _check_name(base, adapter_name)
    kept = modules_to_save or "average"
    bars = Progress(progress)
    with bars.task("reading", 1):
        [opened] = open_adapters(base, [adapter])
        beside = f"take:{opened.name}" if opened.companions else None
        common = {"dtype": dtype, "modules_to_save": kept, "dora": dora, "companions": beside}
        planned = alone("compress", _begin, size, common)
        live = base if isinstance(base, nn.Module) else None
        spelled = together([opened], open_base(base, required=False), live)
        [opened], source = spelled.adapters, spelled.source
        check_dora([opened], dora, source)
        check_extras([opened], kept, source)
    result = _compressed(opened, source, planned, bars)
    if adapter_name is not None and isinstance(base, nn.Module):
        result.apply_to(base, adapter_name)
    return result


def _check_name(base: BaseLike | None, adapter_name: str | None) -> None:
    if adapter_name is None:
        return
    if not isinstance(base, nn.Module) or not hasattr(base, "peft_config"):
        raise OptionError(
            f"adapter_name={adapter_name!r} names an adapter to put on a live model, and base is "
            f"{'not given' if base is None else type(base).__name__}; give the PeftModel as base, or save the result"
        )
    refuse_taken(base, adapter_name)


def alone(name: str, begin: Callable[[Problem, Any], Begun], size: Size, common: Mapping[str, Any]) -> Plan:
    """The plan of what makes one adapter of one source.

    Args:
        name: of the command.
        begin: what gives its layers.
        size: how large it shall be.
        common: options that every merge has.
    """

    given = {"rank": size.rank, "scaling": 1.0, "balance": "none", **common}
    method = Method(name, begin, SizeOptions, exact=True)
    return Plan(method, filled(CommonOptions, given), SizeOptions(size.energy))


def _begin(problem: Problem, options: SizeOptions) -> Begun:
    """The best approximation of every layer of the one adapter."""

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        trained = site.experts[0].load().to(problem.device, torch.float64)
        cut, lost = truncate(trained, problem.limit or trained.rank, options.energy)
        return MergedLayer(singular(cut.to(dtype=torch.float32)), {0: Share(parts[0].rank)}, lost)

    return Begun(layer)


def _compressed(adapter: Adapter, source: WeightSource | None, planned: Plan, bars: Progress) -> MergedAdapter:
    cpu = torch.device("cpu")
    dora = planned.common.dora
    sites, lost = converted(assemble.align([adapter], source), [adapter.name], dora, source, cpu, bars)
    sites = tuple(replace(site, inside=True) for site in sites)  # no graph, so nothing lies outside it
    problem = Problem((adapter.name,), (1.0,), sites, adapter.rank, source, None, cpu, bars, limit=planned.common.rank)
    begun = planned.method.begin(problem, planned.own)
    finisher = Finisher(problem, [adapter], planned, begun, lost)
    for site in iterate(problem, "truncating"):
        parts = problem.parts(site)
        finisher.add(site, parts, begun.layer(site, parts))
    return finisher.done()
