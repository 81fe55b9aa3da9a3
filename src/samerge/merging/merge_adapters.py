"""`merge`: adapters in, one adapter out. Thin: it plans, reads, merges layer by layer, and hands over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from samerge.adapters import Adapter
from samerge.errors import GraphError, OptionError
from samerge.graph import FlowGraph
from samerge.graph.families import find_family
from samerge.graph.naming import WAYS_ON
from samerge.merging.alignment import assemble
from samerge.merging.alignment.spelling import Together
from samerge.merging.calibration.calibrate import Metrics, calibrate
from samerge.merging.companions import chosen_companions
from samerge.merging.conversion.dora import check_dora, converted
from samerge.merging.finish import Finisher
from samerge.merging.inputs import AdapterLike, BaseLike, device_of, open_adapters, open_base, weights_of
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.module_weights import fitted, with_factors
from samerge.merging.plan import Plan, Weights, plan
from samerge.merging.trained_parts import check_extras
from samerge.methods.keywords import MergeKeywords
from samerge.methods.problem import Problem, Site, iterate
from samerge.options.calibration import Calibration
from samerge.parallel.processes import group
from samerge.parallel.progress import Progress
from samerge.weights import WeightSource

#: The words that `weights` may be.
WEIGHT_RULES = ("nan",)


def merge(
    base: BaseLike | None,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    *,
    method: str | None = None,
    weights: Weights = None,
    progress: bool = True,
    **options: Unpack[MergeKeywords],
) -> MergedAdapter:
    """Merge several LoRA adapters of one base model into one adapter.

    By default the components that matter most to the model and to the merge are kept: every adapter is brought to one
    norm in each layer, its singular vectors are decorrelated from the others', the `rank` most salient components of
    all adapters together stay, all at one strength, and each is multiplied with its adapter's weight. The base is
    streamed, a few rows of a weight at a time, and never changed; only `calibration`, which runs it, builds it. In an
    initialised `torch.distributed` group every process must call it, with the same arguments (docs/distributed.md).

    Args:
        base: a folder with `config.json` and safetensors, a hub id, or a loaded model (a `PeftModel` is read below its
            adapters); of diffusers also a whole pipeline. Its names and shapes are checked, and its layers that no
            adapter has are filled in. None for methods that do not read its weights; the default then ranks by size
            (`even`), and says so.
        adapters: name -> folder or hub id, or a list of these (named after their last path part); also adapters that
            were merged before. With a `PeftModel` or a pipeline as the base, names of its adapters.
        method: a name from `available_methods()`, or what PEFT or mergekit call it.
        weights: by name, or in order: strengths, 1.0 full (the default), 0.5 half, negative subtracts, 0 leaves the
            adapter out. Or "nan": in proportion to the adapters' inverse norms, 1.0 on the mean.
        progress: show progress bars when on a terminal.
        **options: those that every method has, and the method's own; `samerge methods NAME` tells what each means.
            rank: rank of the result; by default the largest of any adapter, or what comes out of a method that is not
                truncated, up to the sum of the ranks (`samerge methods NAME` says which). `svd_rank` is the same.
            scaling: one more factor: a number; "auto" or "auto:<c>", c times the mean of |w_n| ||tau_n|| in each layer.
            balance: "norm" brings the adapters to their mean norm in each layer first, so that each has one voice and
                its weight is its loudness; "none" leaves the norms as trained.
            dtype: of the output, such as "bfloat16"; the adapters' own (the widest) by default. Computed in float32.
            device: where to compute: "cpu" by default, a live model's own device otherwise.
            modules_to_save: what becomes of fully trained modules and token rows: "average", the plain mean of the
                adapters that have them; "update", base + sum of w_n (trained_n - base); "take:<adapter>", one
                adapter's; or "drop". Without it, they are an error.
            companions: what becomes of files of weights that lie beside adapters (a value head, a projector):
                "take:<adapter>", one adapter's are copied; or "drop". Without it, they are an error.
            modules: strengths by module, `{"*.mlp.*": 0.5, "layers.[0-9].*": {"math": 1.0, "code": 0.0}}`: patterns of
                names, or of what follows a dot in them, the last that matches wins; multiplied with the weights.
            dora: "exact" converts DoRA adapters on the way: the exact update relative to the base, truncated to the
                adapter's rank, or to another with "exact:<rank>"; the report says what that lost.

    Returns:
        The merged adapter: `.factors`, `.delta(module)`, `.config`, `.report`, `.save(path)`, `.push_to_hub(repo_id)`,
        `.apply_to(model, adapter_name)`.

    Raises:
        OptionError: an option is not known, is out of its range, or does not go with another.
        AdapterError: an adapter cannot be read or is not a plain LoRA.
        BaseModelError: the base cannot be read, or an adapter does not fit it.
        GraphError: the base's architecture is not known; says the ways on.
        HubError: a download failed.

    Formula of the default (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511; Gargiulo et al., CVPR 2025): the r
    components with the largest |w_n gamma_k eta_k|, gamma_k = sigma_k p_k^T (d log R_n / dW) q_k, eta_k = sigma_k p_k^T
    (sum_i w_i tau_i) q_k; M = level * sum_k w_owner(k) u_k v_k^T with u_k, v_k from the polar factors of [P_1 .. P_N]
    and [Q_1 .. Q_N]. See docs/method.md.

    Example:
        ```python
        merged = samerge.merge("meta-llama/Llama-3.1-8B", {"math": "ada/math-lora", "code": "./code-lora"},
                               weights={"math": 1.0, "code": 0.8})
        merged.save("merged/")
        ```
    """
    planned = plan(method, options, weights)
    bars = Progress(progress)
    with bars.task("reading", 1):
        needed = planned.method.base == "needed"
        experts, source = group().together(
            lambda: (open_adapters(base, adapters), open_base(base, required=needed and planned.named))
        )
    return merge_opened(experts, source, base, planned, bars)


@dataclass
class Shared:
    """What several merges of the same adapters and base have in common, so that it is done once.

    Args:
        converted: sites whose DoRA modules were converted, with what that lost, by all that it depends on.
        measured: the metrics of the inputs, likewise.
    """

    converted: dict[Any, tuple[tuple[Site, ...], Mapping[str, Mapping[str, float]]]] = field(default_factory=dict)
    measured: dict[Any, Metrics] = field(default_factory=dict)


def merge_opened(
    experts: Sequence[Adapter],
    source: WeightSource | None,
    base: object,
    planned: Plan,
    bars: Progress,
    shared: Shared | None = None,
) -> MergedAdapter:
    """`merge` of what is open already.

    Args:
        experts: the adapters.
        source: the base's weights, None where no base was given.
        base: what the base was given as; a live model is looked into.
        planned: what to do.
        bars: where to report progress.
        shared: what other merges of the same adapters and base had, to be used again and added to.
    """
    common = planned.common
    with bars.task("aligning", 1):
        names = [expert.name for expert in experts]
        rule = planned.weights if isinstance(planned.weights, str) and planned.weights in WEIGHT_RULES else None
        values = weights_of(None if rule else planned.weights, names, rules=WEIGHT_RULES)

        def aligned() -> tuple[Together, tuple[Site, ...], torch.device]:
            device = device_of(common.device, getattr(source, "device", "cpu"))
            live = base if isinstance(base, nn.Module) else None
            # Those of weight 0 are left out, but where all weigh 0, so that the merge can say so.
            heard = [e for e, w in zip(experts, values, strict=True) if w or not any(values)]
            one = fitted(heard, names, source, live, common.modules)
            checked = one.adapters if any(values) else ()
            check_dora(checked, common.dora, one.source)
            check_extras(checked, common.modules_to_save, one.source)
            chosen_companions(checked, common.companions)
            taking_part = {adapter.name: adapter for adapter in one.adapters}
            placed = [taking_part.get(expert.name, replace(expert, modules={})) for expert in experts]
            return one, with_factors(assemble.align(placed, one.source), names, common.modules), device

        spelled, sites, device = group().together(aligned)
        view = spelled.source
        taking_part = {adapter.name: adapter for adapter in spelled.adapters}
        experts = [taking_part.get(expert.name, expert) for expert in experts]
        planned, graph = _graph(planned, sites, view)
        if planned.note:
            logging.getLogger("samerge").info("%s", planned.note)
        if planned.method.by_site:
            sites = _shared_out(sites)
    sites, dora_lost = _plain(sites, experts, view, planned, device, bars, shared)
    if graph is not None:
        within = assemble.inside(graph)
        sites = tuple(replace(site, inside=site.key in within) for site in sites)
    problem = Problem(
        tuple(names),
        values,
        sites,
        max(module.rank for site in sites for module in site.experts.values()),
        view,
        graph,
        device,
        bars,
        limit=common.rank,
        balance=common.balance or "none",
    )
    if rule:
        problem = replace(problem, weights=nan_weights(problem))
    measured = _measured(problem, base, source, planned, shared)
    problem = replace(problem, metrics={m: one.to(device) for m, one in measured.of.items()})
    begun = group().together(lambda: planned.method.begin(problem, planned.own))
    finisher = Finisher(problem, experts, planned, begun, dora_lost, notes=(*spelled.notes, *measured.notes))

    def layers() -> None:
        for site in iterate(problem, "merging"):
            parts = problem.parts(site)
            finisher.add(site, parts, begun.layer(site, parts))
            problem.release(site)

    group().together(layers)
    with bars.task("finishing", 1):
        return finisher.done()


def _shared_out(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """With several processes, the sites with an owner each: every process gets about as many bytes of factors."""
    if group().size == 1:
        return sites
    ranks = [sum(one.rank for one in site.experts.values()) for site in sites]
    owners = group().owners([rank * sum(site.shape) for rank, site in zip(ranks, sites, strict=True)])
    return tuple(replace(site, owner=owner) for site, owner in zip(sites, owners, strict=True))


def nan_weights(problem: Problem) -> tuple[float, ...]:
    """`weights="nan"`: every adapter in proportion to the inverse norm of its update (arXiv 2505.16148).

        w_i = (1 / ||tau_i||) / mean_j (1 / ||tau_j||),    ||tau_i||^2 = sum over layers ||tau_i^l||_F^2

    The mean is 1, so that adapters of one norm get the default weights and `scaling` means what it means without. A
    zero adapter gets 1 and takes no part in the mean.
    """
    sizes = [problem.norms.get(n, 0.0) for n in range(len(problem.names))]
    inverse = [1 / size if size > 0 else None for size in sizes]
    known = [value for value in inverse if value is not None]
    mean = sum(known) / len(known) if known else 1.0
    return tuple(1.0 if value is None else value / mean for value in inverse)


def _graph(planned: Plan, sites: Sequence[Site], source: WeightSource | None) -> tuple[Plan, FlowGraph | None]:
    """The flow graph that the method needs; or the plan that does without, where nothing was named."""
    if planned.method.base != "needed":
        return planned, None
    if source is None:
        other = planned.without_base(
            "no base was given, so the components were ranked by their size alone (method even); with a base they are "
            "ranked by their saliency"
        )
        if other is None:
            raise OptionError(
                f"method {planned.method.name!r} reads the base model; give base: a folder, a hub id or a loaded "
                f"model. Methods that do without: even, linear, svd and others (see the methods)"
            )
        return other, None
    connectivity, residual = (getattr(planned.own, name) for name in ("connectivity", "residual"))
    try:
        return planned, assemble.flow_graph(sites, source, connectivity, residual)
    except GraphError as error:
        other = planned.without_base(
            f"{_why_no_graph(source, error)}, so the components were ranked by their size alone (method even); "
            f"connectivity='local', or a graph of your own, ranks them by their saliency"
        )
        if other is None:
            raise error
        return other, None


def _why_no_graph(source: WeightSource, error: GraphError) -> str:
    """A family that is not known needs no more words; a base that is not as its family is may be a broken one."""
    if find_family(str(source.config.get("model_type"))) is None:
        return "the base's architecture has no flow graph here"
    reason = str(error).replace(WAYS_ON, "").strip().rstrip(".")
    return f"the base's flow graph could not be made ({reason})"


def _measured(
    problem: Problem, base: object, source: WeightSource | None, planned: Plan, shared: Shared | None
) -> Metrics:
    """The metrics of the inputs where they are asked for; the first of several processes runs the base."""
    given: Calibration | None = getattr(planned.own, "calibration", None)
    if given is None:
        return Metrics()
    held = {} if shared is None else shared.measured
    key = (given.file, repr(given.texts), id(given.run), *(site.module for site in problem.sites))
    if key not in held:
        one = group()
        found = one.each(
            lambda: (
                calibrate(given, problem.sites, base, source, problem.device, problem.progress)
                if one.first
                else Metrics()
            )
        )
        held[key] = found[0]
    return held[key]


def _plain(
    sites: tuple[Site, ...],
    experts: Sequence[Adapter],
    source: WeightSource | None,
    planned: Plan,
    device: torch.device,
    bars: Progress,
    shared: Shared | None,
) -> tuple[tuple[Site, ...], Mapping[str, Mapping[str, float]]]:
    """The sites with every DoRA module converted, and what that lost; from another merge where it is the same."""
    held = {} if shared is None else shared.converted
    dora = planned.common.dora
    key = (dora, str(device), *((site.module, site.owner, *site.experts, *site.factors.items()) for site in sites))
    if key not in held:
        held[key] = converted(sites, [expert.name for expert in experts], dora, source, device, bars)
    return held[key]
