"""Bringing several adapters of one base together: which module of which adapter is which weight of the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from samerge.adapters import AdaptedModule, Adapter
from samerge.adapters.layouts import Layout
from samerge.adapters.servable import partners, siblings
from samerge.errors import BaseModelError, GraphError
from samerge.graph import FlowGraph, Weight
from samerge.graph.conv1d import CONV1D_FAMILIES, is_conv1d
from samerge.merging.alignment.architecture import base_graph
from samerge.methods.problem import Site, each_alone
from samerge.options.module_names import expert_of, module_type, stem_of
from samerge.weights import WeightSource, matrix_shape

#: Models whose stacked experts are stored (in, out), where a square one does not show it.
_TRANSPOSED_STACKS = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})


def align(adapters: Sequence[Adapter], source: WeightSource | None) -> tuple[Site, ...]:
    """The union of the adapted modules, sorted by name, each with the adapters that have it.

    Args:
        adapters: the adapters, in order, under one spelling with the base (`alignment.spelling`).
        source: the base; without one, names alone decide.

    Raises:
        BaseModelError: an adapter does not fit the base, or two adapters do not fit each other.
    """
    found: dict[str, dict[int, AdaptedModule]] = {}
    keys: dict[str, str] = {}
    for n, adapter in enumerate(adapters):
        own = _keys(adapter, source)
        keys.update(own)
        for module, adapted in adapter.modules.items():
            if source is not None:
                adapted = _fitted(adapter.name, module, adapted, expert_of(own[module])[0], source)
            others = found.setdefault(module, {})
            for m, first in others.items():
                if source is None and first.shape == adapted.shape and first.layout != adapted.layout:
                    adapted = replace(adapted, layout=_fuller(adapted.layout, first.layout))
                    others[m] = first = replace(first, layout=_fuller(first.layout, adapted.layout))
                if first.shape != adapted.shape or not _alike(first.layout, adapted.layout, source):
                    raise BaseModelError(
                        f"module {module!r} does not match between adapters: {adapters[m].name!r} updates "
                        f"{first.shape} ({first.layout.kind}), {adapter.name!r} updates {adapted.shape} "
                        f"({adapted.layout.kind}); they are adapters of different base models"
                    )
                break  # the others are like the first
            others[n] = adapted
    sites = []
    for module, experts in sorted(found.items()):
        one = next(iter(experts.values()))
        sites.append(Site(module, None if source is None else keys[module], one.layout, one.shape, experts))
    return tuple(sites)


def flow_graph(sites: Sequence[Site], source: WeightSource, connectivity: str | FlowGraph, residual: bool) -> FlowGraph:
    """The graph that the options ask for.

    Args:
        sites: the adapted maps.
        source: the base.
        connectivity: "flow", "local", or a graph of one's own.
        residual: whether it has the residual edges.

    Raises:
        GraphError: the architecture is not in the table, or no adapted module is in a custom graph.
    """
    if isinstance(connectivity, FlowGraph):
        graph = connectivity
        if not any(site.key is not None and expert_of(site.key)[0] in graph.tensors for site in sites):
            raise GraphError(
                f"none of the adapted weights is in the given flow graph; it has {list(graph.tensors)[:3]} ..., the "
                f"adapters update {[site.key for site in sites][:3]} ..."
            )
        return graph
    if connectivity == "local":
        return each_alone(sites)
    return base_graph(source, residual)


def inside(graph: FlowGraph) -> frozenset[str]:
    """The weight keys that take part in a graph."""
    return frozenset(edge.key for edge in graph.edges if isinstance(edge, Weight))


def missing_layers(sites: Sequence[Site], source: WeightSource | None) -> dict[str, tuple[Site, tuple[int, int]]]:
    """Modules of the adapted types in layers that no expert adapts: name -> (a site of the type, (out, in))."""
    if source is None:
        return {}
    stems = {tensor.removesuffix(".weight"): tensor for tensor, shape in source.shapes.items() if len(shape) >= 2}
    like: dict[str, Site] = {}  # type of module -> the first site of it
    for site in sites:
        like.setdefault(module_type(stem_of(site.module)), site)
    result = {}
    for stem in siblings({stem_of(site.module) for site in sites}, stems):
        shape = source.shapes[stems[stem]]
        site = _of_kernel(like[module_type(stem)], shape)
        experts = shape[0] if site.layout.experts else None
        rows, columns = matrix_shape(shape, None if experts is None else 0)
        sides = (columns, rows) if site.layout.transposed else (rows, columns)
        full = f"{stem}.weight" if site.module.endswith(".weight") else stem
        for name in [full] if experts is None else [f"{full}[{e}]" for e in range(experts)]:
            result[name] = (site, sides)
    return result


def _of_kernel(site: Site, shape: tuple[int, ...]) -> Site:
    """A site that is an example of others, with the kernel and the channels of one of those."""
    layout = site.layout
    return replace(site, layout=replace(layout, kernel=shape[1:])) if layout.kind == "conv" else site


def missing_partners(
    sites: Sequence[Site], others: Iterable[str], source: WeightSource | None
) -> dict[str, tuple[Site, tuple[int, int]]]:
    """Modules of the base that no expert adapts and a server stacks with adapted ones: as `missing_layers`.

    Args:
        sites: the adapted maps.
        others: modules that are filled in already.
        source: the base.
    """
    if source is None:
        return {}
    linear = {site.module: site for site in sites if site.layout.kind == "linear" and not site.layout.transposed}
    found = {}
    for module in partners({*linear, *others}):
        shape = source.shapes.get(f"{module}.weight", ())
        if len(shape) == 2:
            found[module] = (next(iter(linear.values())), (shape[0], shape[1]))
    return found


def _keys(adapter: Adapter, source: WeightSource | None) -> dict[str, str]:
    """For each module of an adapter its weight key, under its own name in the base; without one, its name."""
    if source is None:
        return {module: module for module in adapter.modules}
    keys = {}
    for module, adapted in adapter.modules.items():
        stem, expert = expert_of(module)
        tensor = next((name for name in (f"{stem}.weight", stem) if name in source.shapes), None)
        if tensor is None:
            raise BaseModelError(
                f"adapter {adapter.name!r} does not fit the base model {source.name!r}: its module {module!r} has no "
                f"weight there. Is it an adapter of another base model?"
            )
        if expert is None and adapted.layout.kind == "parameter":
            expert = 0 if len(source.shapes[tensor]) == 3 else None  # a stack of one
        keys[module] = tensor if expert is None else f"{tensor}[{expert}]"
    return keys


def _fitted(adapter: str, module: str, adapted: AdaptedModule, tensor: str, source: WeightSource) -> AdaptedModule:
    """The module with its layout settled by the base's shape.

    Raises:
        BaseModelError: it does not fit.
    """
    shape, layout = source.shapes[tensor], adapted.layout
    rows, columns = matrix_shape(shape, 0 if layout.kind == "parameter" and len(shape) == 3 else None)
    if len(shape) > 2 and (layout.kind == "conv" or (layout.kind == "linear" and adapted.shape == (rows, columns))):
        layout = replace(layout, kind="conv", transposed=False, kernel=tuple(shape[1:]))  # the file may have it flat
    elif layout.kind == "linear" or (layout.kind == "parameter" and len(shape) == 3):
        layout = replace(layout, transposed=_is_transposed(module, adapted, rows, columns, source))
    expected = (columns, rows) if layout.transposed else (rows, columns)
    experts = shape[0] if layout.kind == "parameter" and len(shape) == 3 else 1
    if adapted.shape != expected or max(1, layout.experts) != experts:
        stack = f" in each of {layout.experts} experts" if layout.experts else ""
        raise BaseModelError(
            f"adapter {adapter!r} does not fit the base model {source.name!r}: its module {module!r} updates a weight "
            f"of {adapted.shape[0]} x {adapted.shape[1]} (out x in){stack}, the base's {tensor} is {shape}. "
            f"Is it an adapter of another base model, or of one with a resized vocabulary?"
        )
    return replace(adapted, layout=layout)


def _is_transposed(module: str, adapted: AdaptedModule, rows: int, columns: int, source: WeightSource) -> bool:
    """Whether the base stores the weight (in, out). `fan_in_fan_out` need not tell: with both Conv1D and Linear among
    the targets PEFT writes what the last of them was.
    """
    kind = source.config.get("model_type")
    if rows != columns:
        may_be = adapted.layout.kind == "parameter" or adapted.layout.transposed or kind in (None, *CONV1D_FAMILIES)
        return may_be and adapted.shape == (columns, rows)
    if adapted.layout.kind == "parameter":
        return adapted.layout.transposed or kind in _TRANSPOSED_STACKS
    if kind in CONV1D_FAMILIES:
        return is_conv1d(kind, module)
    return adapted.layout.transposed


def _alike(one: Layout, two: Layout, source: WeightSource | None) -> bool:
    """Whether two layouts are the same. Without a base nobody knows which way round a weight is stored."""
    return one == two or (source is None and replace(one, transposed=two.transposed) == two)


def _fuller(layout: Layout, other: Layout) -> Layout:
    """A layout, or the other adapter's where its own file has a convolution's weights flat, without the kernel."""
    return other if layout == Layout("linear") and other.kind == "conv" else layout
