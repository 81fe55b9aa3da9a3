"""`merge`: adapters in, one adapter out. Thin: it reads, calls the method, scales, truncates, and hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from samerge.adapters import Adapter
from samerge.graph import FlowGraph
from samerge.merging.alignment import assemble
from samerge.merging.alignment.views import view_for
from samerge.merging.conversion.dora import check_dora, converted
from samerge.merging.finish import finish
from samerge.merging.inputs import AdapterLike, device_of, dtype_of, open_adapters, open_base, weights_of
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.trained_parts import check_extras
from samerge.methods.balance import balance
from samerge.methods.chain import Chain, Shared, chain
from samerge.methods.problem import Problem, Site, shared_out
from samerge.methods.weighing import WEIGHT_RULES
from samerge.options.merge_options import MergeOptions
from samerge.parallel.processes import group
from samerge.parallel.progress import Progress
from samerge.report.report import Report
from samerge.weights import WeightSource


def merge(
    base: str | Path | nn.Module | None,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    *,
    weights: Mapping[str, float] | Sequence[float] | str | None = None,
    method: str | None = None,
    recipe: Literal["paper", "even"] | None = None,
    balance: Literal["none", "norm", "global"] | None = None,
    selection: str | None = None,
    aggregation: str | None = None,
    rank: int | None = None,
    density: float | str | None = None,
    iterations: int | None = None,
    refresh: int | None = None,
    basis: Literal["svd", "native"] | None = None,
    scaling: float | str | None = None,
    agreement: Literal["absolute", "signed", "paper", "task"] | None = None,
    scope: Literal["layer", "global"] | None = None,
    connectivity: Literal["flow", "local"] | FlowGraph | None = None,
    residual: bool | None = None,
    precision: Literal["float32", "float64"] | None = None,
    svd_rank: int | None = None,
    spectrum: Literal["kept", "flat"] | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    modules_to_save: str | None = None,
    dora: str | None = None,
    method_options: Mapping[str, float | str] | None = None,
    progress: bool = True,
) -> MergedAdapter:
    """Merge several LoRA adapters of one base model into one adapter.

    Where no method, recipe, selection or aggregation is named, it is the recipe "even", which reads no weights of the
    base. `method="saliency"` is SA-Merging with samerge's corrections, `recipe="paper"` as published. Merges that read
    the base stream it, a few rows of a weight at a time; it is never built, never changed. In an initialised
    `torch.distributed` group every process must call it, with the same arguments (docs/distributed.md).

    Args:
        base: a folder with `config.json` and safetensors, a hub id, or a loaded model (a `PeftModel` is read below its
            adapters). Its names and shapes are checked, and its layers that no adapter has are filled in. None for
            merges that do not read its weights: all but `elementwise` and those that select by "saliency" or
            "sensitivity".
        adapters: name -> folder or hub id, or a list of these (named after their last path part). With a `PeftModel`
            as the base, names of its adapters.
        weights: by name, or in order; 1.0 each by default. May be negative. Or "nan": in proportion to the adapters'
            inverse norms, 1.0 on the mean; or "auto": those whose sum changes the experts' own outputs least.
        method: a name from `samerge.methods()`: `saliency` is the selection of this name, followed by the sum; every
            other method is the aggregation of its name, without a selection.
        recipe: a named set of defaults; explicit options win over it. "even", where nothing is named: experts of one
            norm, their singular vectors decorrelated, the largest source rank, a flat spectrum (docs/recipe.md).
            "paper" is SA-Merging as published: native basis, density 0.1, ten iterations, scaling 1.0, no residual
            edges, modules outside the graph unpruned.
        balance: bring the experts to their mean norm first: "norm", in each layer; "global", one factor for each
            expert. "none" by default, but in the recipe "even", which has "norm".
        selection: which rank-1 components take part: "saliency", |gamma eta|; for comparison "sensitivity", |gamma|,
            "agreement", |eta|, "norm", ||b|| ||a||, "random" or "random:<seed>"; or "none".
        aggregation: how what was selected is combined: "sum", or any method of the registry but `elementwise`.
        rank: rank of the result. A selection before the sum keeps exactly so many components in every layer, shared
            among the experts in proportion to their own ranks; anything else is truncated to it. Default of "even" and
            of every merge with a selection and without `density`: the largest rank of any source.
        density: share of its components (`elementwise`: of its elements, 0.1 by default) that each expert keeps in
            each layer, in (0, 1]; or "adaptive": layers whose magnitudes are even are pruned harder, sparse ones less,
            0.1 on the mean or another with "adaptive:0.2". With a selection and `rank` before the sum it is an error;
            before another aggregation it is 0.75 by default. Without a selection it is the method's own. This and the
            other options of a selection, down to `precision`, are an error where nothing is named.
        iterations: scoring and pruning steps, 10 by default.
        refresh: how often gamma, which takes two sweeps over the base, is computed anew: 1 (default), in every
            iteration; k, in every k-th; 0, in the first alone, and restricted to the survivors after that.
        basis: "svd" (default), the singular triplets of each update, which do not depend on how B and A were trained;
            or "native", the columns of B and rows of A as they are.
        scaling: lambda, or "auto" (default of every merge with a selection, and of `elementwise`): each layer's merged
            update gets c times the experts' mean Frobenius norm there, c = 1.3, or 2.0 for a flat spectrum; "auto:<c>"
            sets c. Or "unit" (default of "even"): sum |w| / sum w^2, which is 1.0 where all weights are.
            The exact methods default to 1.0, others to their published lambda. Or "lines:<alpha>:<beta>": alpha + beta
            l / (L - 1) in layer l of L. Or "interference", the lambda that changes the experts' own outputs least;
            "interference:layer", one for each layer.
        agreement: "absolute" (default), |gamma eta|; or "signed", |gamma| w eta, so that components that disagree with
            the merge go first. For `elementwise`: "paper" (default), dR/dtau times the merge, with its sign; or "task",
            |dR/dtau| w tau times the merge, positive only where the expert agrees with it.
        scope: "layer" (default) or "global": rank an expert's components in each layer apart, or over all layers.
        connectivity: "flow" (default), through the model family's graph; "local", every layer by itself; or a
            `samerge.graph.FlowGraph` of one's own.
        residual: whether the flow graph has the residual edges, True by default.
        precision: what flows and gamma are computed in: "float32" (default), or "float64", for checks.
        svd_rank: truncate every merged layer to this rank afterwards (exact, through the factors; `elementwise`: by a
            randomised SVD, to the largest source rank by default).
        spectrum: "flat" makes the singular values of every merged layer equal, after the truncation; "kept" by default,
            but in the recipe "even", which has "flat".
        dtype: of the output, e.g. "bfloat16"; the adapters' own (the widest) by default. Computed in float32.
        device: where to compute: "cpu" by default, a live model's own device otherwise.
        modules_to_save: what becomes of fully trained modules (`modules_to_save`) and token rows
            (`trainable_token_indices`): "average", the plain mean of the adapters that have them; "take:<adapter>", one
            adapter's; or "drop". Without it, adapters that carry any are an error.
        dora: "exact" converts DoRA adapters on the way: the exact update relative to the base, truncated to the
            adapter's rank, or to another with "exact:<rank>"; the report says what that lost. An error without it.
        method_options: what only this method has, by name, e.g. `{"mu": 0.1}` for `wudi`; `samerge methods` lists them.
            After a selection also the `density` of the aggregation.
        progress: show progress bars when on a terminal.

    Returns:
        The merged adapter: `.factors`, `.delta(module)`, `.config`, `.report`, `.save(path)`, `.push_to_hub(repo_id)`,
        `.apply_to(model, adapter_name)`.

    Raises:
        OptionError: an option is out of its range or does not go with another.
        AdapterError: an adapter cannot be read or is not a plain LoRA.
        BaseModelError: the base cannot be read, or an adapter does not fit it.
        GraphError: the base's architecture is not known; says the ways on.
        HubError: a download failed.

    Formula of "even": tau_n of one norm, tau_n = U_n S_n V_n^T, M = U S V^T with U and V the polar factors of
    [U_1 .. U_N] and [V_1 .. V_N] (TSV-Merge, Gargiulo et al. 2024), truncated, its singular values made equal (in the
    spirit of Iso-C, Marczak et al. 2025). See docs/recipe.md.

    Formula of "saliency" (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511): keep the components with the largest
    s_k = |gamma_k eta_k|, gamma_k = b_k^T (dR/dW) a_k, eta_k = b_k^T (sum_i w_i tau_i) a_k; with `density=1.0` and
    `scaling=1.0` all of them, which is the exact weighted sum. See docs/method.md.

    Example:
        ```python
        merged = samerge.merge("meta-llama/Llama-3.1-8B", {"math": "ada/math-lora", "code": "./code-lora"},
                               weights={"math": 1.0, "code": 0.8})
        merged.save("merged/")
        ```
    """
    links = chain(method, selection, aggregation, recipe)
    given = {
        "balance": balance,
        "rank": rank,
        "density": density,
        "iterations": iterations,
        "refresh": refresh,
        "precision": precision,
        "basis": basis,
        "spectrum": spectrum,
        "scaling": scaling,
        "agreement": agreement,
        "scope": scope,
        "connectivity": connectivity,
        "residual": residual,
        "svd_rank": svd_rank,
        "dtype": dtype_of(dtype),
        "device": device,
        "modules_to_save": modules_to_save,
        "dora": dora,
    }
    options = links.options(given, method_options, measured=isinstance(weights, str) and weights == "auto")
    bars = Progress(progress)
    with bars.task("reading", 1):
        experts, source = group().together(
            lambda: (open_adapters(base, adapters), open_base(base, required=links.needs_base))
        )
    return merge_opened(experts, source, base, weights, links, options, bars)


def merge_opened(
    experts: Sequence[Adapter],
    source: WeightSource | None,
    base: object,
    weights: Mapping[str, float] | Sequence[float] | str | None,
    links: Chain,
    options: MergeOptions,
    bars: Progress,
    shared: Shared | None = None,
) -> MergedAdapter:
    """`merge` of what is open already.

    Args:
        experts: the adapters.
        source: the base's weights, None for merges that do not read them.
        base: what the base was given as; a live model is looked into.
        weights: as `merge` takes them.
        links: the chain of links.
        options: its options, filled in.
        bars: where to report progress.
        shared: what other merges of the same experts and base had, to be used again and added to.
    """
    with bars.task("aligning", 1):
        rule = WEIGHT_RULES.get(weights) if isinstance(weights, str) else None
        values = weights_of(weights if rule is None else None, [e.name for e in experts], rules=WEIGHT_RULES)
        active = [expert for expert, weight in zip(experts, values, strict=True) if weight != 0]

        def aligned() -> tuple[WeightSource | None, tuple[Site, ...], torch.device]:
            device = device_of(options.device, getattr(source, "device", "cpu"))
            live = base if isinstance(base, nn.Module) else None
            view = None if source is None else view_for(source, experts, live)
            check_dora(active, options.dora, view)
            check_extras(active, options.modules_to_save, view)
            return view, tuple(assemble.align(experts, view)), device

        view, sites, device = group().together(aligned)
        if links.by_site and group().size > 1:
            sites = shared_out(sites, values)
    sites, lost = _plain(sites, experts, view, options, device, bars, shared)
    problem = _problem(experts, values, sites, view, options, links.needs_base, device, bars)
    if rule is not None:  # measured on what they weigh
        weighed = problem if options.balance == "none" else balance(problem, options.balance).problem
        problem = replace(problem, weights=rule(weighed, options))
    outcome = links.run(problem, options, shared)
    with bars.task("finishing", 1):
        merged = finish(problem, experts, outcome, options, links.svd_rank(options, problem.rank), lost)
    if rule is None:
        return merged
    told = merged.report.record  # has the numbers that were found; this is how
    return replace(merged, report=Report({**told, "options": {**told["options"], "weights": weights}}))


def _plain(
    sites: tuple[Site, ...],
    experts: Sequence[Adapter],
    source: WeightSource | None,
    options: MergeOptions,
    device: torch.device,
    bars: Progress,
    shared: Shared | None,
) -> tuple[tuple[Site, ...], Mapping[str, Mapping[str, float]]]:
    """The sites with every DoRA module converted, and what that lost; from another merge where it is the same."""
    held = {} if shared is None else shared.converted
    key = (options.dora, str(device), *((site.module, site.owner, *site.experts) for site in sites))
    if key not in held:
        held[key] = converted(sites, [expert.name for expert in experts], options.dora, source, device, bars)
    return held[key]


def _problem(
    experts: Sequence[Adapter],
    weights: tuple[float, ...],
    sites: tuple[Site, ...],
    source: WeightSource | None,
    options: MergeOptions,
    needs_graph: bool,
    device: torch.device,
    bars: Progress,
) -> Problem:
    names = tuple(expert.name for expert in experts)
    graph = None
    if needs_graph and source is not None:
        graph = assemble.flow_graph(sites, source, options)
        within = assemble.inside(graph)
        sites = tuple(replace(site, inside=site.key in within) for site in sites)
    rank = max(module.rank for site in sites for module in site.experts.values())
    return Problem(names, weights, sites, rank, source, graph, device, bars)
