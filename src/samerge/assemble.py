"""Bringing several adapters of one base together: which module of which adapter is which weight of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samerge.adapters import AdaptedModule, Adapter
from samerge.checkpoints import WeightSource, matrix_shape
from samerge.connectivity import local_graph, weight_key
from samerge.errors import BaseModelError, GraphError
from samerge.graph import FlowGraph, Weight, build_graph
from samerge.matching import match_modules
from samerge.methods.problem import Site
from samerge.options import MergeOptions
from samerge.profile import siblings


def align(adapters: Sequence[Adapter], source: WeightSource | None) -> tuple[Site, ...]:
    """The union of the adapted modules, sorted by name, each with the adapters that have it.

    Modules that mean the same weight of the base are one site, also where adapters name them differently (trained on
    different wrappers of the base); the first adapter's name stands.

    Args:
        adapters: the experts, in order.
        source: the base; without one, names alone decide.

    Raises:
        BaseModelError: an adapter does not fit the base, or two adapters do not fit each other.
    """
    names: dict[str, str] = {}  # weight -> the module's name in the merged adapter
    found: dict[str, dict[int, AdaptedModule]] = {}
    for n, adapter in enumerate(adapters):
        tensors: Mapping[str, str] = {module: module for module in adapter.modules}
        if source is not None:
            tensors = match_modules(adapter.name, adapter.modules, source.shapes, source.name)
        for module, adapted in adapter.modules.items():
            if source is not None:
                _check_shape(adapter.name, module, adapted, tensors[module], source)
            key = names.setdefault(tensors[module], module)
            others = found.setdefault(key, {})
            for m, other in others.items():
                if other.shape != adapted.shape or other.layout != adapted.layout:
                    raise BaseModelError(
                        f"module {module!r} does not match between adapters: {adapters[m].name!r} updates "
                        f"{other.shape} ({other.layout.kind}), {adapter.name!r} updates {adapted.shape} "
                        f"({adapted.layout.kind}); they are adapters of different base models"
                    )
            others[n] = adapted
    keys = {module: tensor for tensor, module in names.items()}
    return tuple(
        Site(
            module,
            keys[module] if source is not None else None,
            next(iter(found[module].values())).layout,
            next(iter(found[module].values())).shape,
            found[module],
        )
        for module in sorted(found)
    )


def flow_graph(sites: Sequence[Site], source: WeightSource, options: MergeOptions) -> FlowGraph:
    """The graph that the options ask for.

    Raises:
        GraphError: the architecture is not in the table, or no adapted module is in a custom graph.
    """
    if isinstance(options.connectivity, FlowGraph):
        graph = options.connectivity
        if not any(site.key in graph.tensors for site in sites):
            raise GraphError(
                f"none of the adapted weights is in the given flow graph; it has {list(graph.tensors)[:3]} ..., the "
                f"adapters update {[site.key for site in sites][:3]} ..."
            )
        return graph
    if options.connectivity == "local":
        return local_graph(Weight("", "", site.key, site.layout.transposed) for site in sites if site.key is not None)
    return build_graph(source.config, source.shapes, residual=options.residual)


def inside(graph: FlowGraph) -> frozenset[str]:
    """The weight keys that take part in a graph."""
    return frozenset(weight_key(edge) for edge in graph.edges if isinstance(edge, Weight))


def missing_layers(sites: Sequence[Site], source: WeightSource | None) -> dict[str, tuple[Site, tuple[int, int]]]:
    """Modules of the adapted types in layers that no expert adapts: name -> (a site of the type, (out, in))."""
    if source is None:
        return {}
    stems = {tensor.removesuffix(".weight"): tensor for tensor, shape in source.shapes.items() if len(shape) >= 2}
    found = {site.module: site.key.removesuffix(".weight") for site in sites if site.key is not None}
    by_type = {site.layout.kind: site for site in sites}
    result = {}
    for module, stem in siblings(found, stems).items():
        like = next((s for s in sites if s.module.rsplit(".", 1)[-1] == module.rsplit(".", 1)[-1]), None)
        like = like or by_type["linear"]
        rows, columns = matrix_shape(source.shapes[stems[stem]], None)
        result[module] = (like, (columns, rows) if like.layout.transposed else (rows, columns))
    return result


def _check_shape(adapter: str, module: str, adapted: AdaptedModule, tensor: str, source: WeightSource) -> None:
    rows, columns = matrix_shape(source.shapes[tensor], None)
    expected = (columns, rows) if adapted.layout.transposed else (rows, columns)
    if adapted.shape != expected:
        raise BaseModelError(
            f"adapter {adapter!r} does not fit the base model {source.name!r}: its module {module!r} updates a weight "
            f"of {adapted.shape[0]} x {adapted.shape[1]} (out x in), the base's {tensor} is {source.shapes[tensor]}. "
            f"Is it an adapter of another base model?"
        )
