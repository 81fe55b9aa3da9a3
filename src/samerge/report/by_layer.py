"""What a merge's record says of its layers: by type of layer, and which layers lost the most. Pure, plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from samerge.adapters.servable import module_type
from samerge.report.diagnostics.whole_merge import weighted_mean

#: A module's name up to its first number.
_BLOCK = re.compile(r"^(.*?)(?:(?<=\.)|^)(\d+)(?=\.|$)")
#: Of signs, for every layer of a record that has diagnostics.
_SIGNS = ("sign_conflict", "sign_conflict_after")


def layer_types(layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each type of module (`layers.*.mlp.up_proj`), sorted.

    Args:
        layers: `layers` of a record.

    Returns:
        For each type: `type`, `layers`, `components`, `kept` (None where the method chooses none), `elements` (kept and
        all, None where the method keeps components), `energy` (share of
        the experts' energy that was kept before truncation), `lost` (share of the merged energy that truncation lost,
        the mean), `scale` (the mean), `outside` (whether it takes no part in the flow graph), `sign_conflict` and
        `sign_conflict_after` (among the experts, and among what pruning left of them; None where there is none), and
        `kept_of`: for each expert, how many of its components were kept.

    Example:
        >>> share = {"components": 4, "kept": [0, 2], "norm": 2.0, "energy": 0.5}
        >>> layer = {"experts": {"a": share}, "scale": 1.0, "norm": 2.0, "lost": 0.0, "outside": False}
        >>> [(row["type"], row["layers"], row["kept"]) for row in layer_types({"h.0.q": layer, "h.1.q": layer})]
        [('h.*.q', 2, 4)]
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for module, layer in layers.items():
        groups.setdefault(module_type(module), []).append(layer)
    return [{"type": kind, **_of_group(groups[kind])} for kind in sorted(groups)]


def worst_layers(layers: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The layers in which the least of the experts' energy is left, the worst first; ties by name.

    Args:
        layers: `layers` of a record.
        count: how many at most.

    Returns:
        For each: `module`, `energy` (share kept by the selection, all experts together), `lost` (share lost by
        truncation), `left` (their product), and `least`: the expert that lost most there, with `least_energy`.
    """
    rows = []
    for module, layer in sorted(layers.items()):
        experts = layer["experts"]
        if not experts:
            continue
        energy = _energy(experts.values())
        least = min(experts, key=lambda name: (experts[name]["energy"], name))
        rows.append(
            {
                "module": module,
                "energy": energy,
                "lost": layer["lost"],
                "left": energy * (1 - layer["lost"]),
                "least": least,
                "least_energy": experts[least]["energy"],
            }
        )
    return sorted(rows, key=lambda row: (row["left"], row["module"]))[:count]


def layer_ranks(layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each type of module of an adapter that was truncated, sorted.

    Args:
        layers: `layers` of a record.

    Returns:
        For each type: `type`, `layers`, `before` and `rank` (smallest and largest), `lost` (share of the energy of all
        of them together), `most` (the largest share that one of them lost).

    Example:
        >>> layer = {"experts": {"a": {"components": 8, "norm": 2.0}}, "rank": 3, "lost": 0.1}
        >>> layer_ranks({"h.0.q": layer, "h.1.q": {**layer, "rank": 5}})
        [{'type': 'h.*.q', 'layers': 2, 'before': (8, 8), 'rank': (3, 5), 'lost': 0.1, 'most': 0.1}]
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for module, layer in layers.items():
        groups.setdefault(module_type(module), []).append(layer)
    rows = []
    for kind in sorted(groups):
        group = groups[kind]
        shares = [(share, layer) for layer in group for share in layer["experts"].values()]
        before = [share["components"] for share, _ in shares]
        total = sum(share["norm"] ** 2 for share, _ in shares)
        lost = sum(share["norm"] ** 2 * layer["lost"] for share, layer in shares)
        ranks = [layer["rank"] for layer in group]
        rows.append(
            {
                "type": kind,
                "layers": len(group),
                "before": (min(before), max(before)),
                "rank": (min(ranks), max(ranks)),
                "lost": lost / total if total else 0.0,
                "most": max(layer["lost"] for layer in group),
            }
        )
    return rows


def conflicts_by_block(layers: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Sign conflicts among the experts before and after pruning, by block of the model, in its order.

    A block is all modules of one name up to the first number; it is called by the number where that is enough. Modules
    without a number stand for themselves, at the end.

    Args:
        layers: `layers` of a record.

    Returns:
        `sign_conflict` and `sign_conflict_after` for each block, the means over its modules by elements looked at; None
        where there is none.

    Example:
        >>> one = {"sign_conflict": 0.5, "sign_conflict_after": 0.25, "sampled": [8, 8]}
        >>> found = conflicts_by_block({"h.10.q": one, "h.2.q": one, "h.2.v": {**one, "sign_conflict": 0.25}})
        >>> list(found), found["2"]
        (['2', '10'], {'sign_conflict': 0.375, 'sign_conflict_after': 0.25})
    """
    groups: dict[tuple[int, str, int], list[Mapping[str, Any]]] = {}
    for module, layer in layers.items():
        found = _BLOCK.match(module)
        groups.setdefault((0, found[1], int(found[2])) if found else (1, module, 0), []).append(layer)
    several = len({key[:2] for key in groups if not key[0]}) > 1
    return {
        name if apart else f"{name}{number}" if several else str(number): _signs(groups[apart, name, number])
        for apart, name, number in sorted(groups)
    }


def _signs(group: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """The means of several layers; None for records of older versions, and of merges that have no diagnostics."""
    known = [layer for layer in group if layer.get("sampled")]
    return {key: weighted_mean((layer.get(key), layer["sampled"][0]) for layer in known) for key in _SIGNS}


def _of_group(group: list[Mapping[str, Any]]) -> dict[str, Any]:
    shares = [(name, share) for layer in group for name, share in layer["experts"].items()]
    chosen = all(share["kept"] is not None for _, share in shares)
    elements = [share["elements"] for _, share in shares if share.get("elements")]
    kept_of: dict[str, int] = {}
    for name, share in shares:
        kept_of[name] = kept_of.get(name, 0) + (len(share["kept"]) if chosen else share["components"])
    return {
        "layers": len(group),
        "components": sum(share["components"] for _, share in shares),
        "kept": sum(kept_of.values()) if chosen else None,
        "elements": [sum(pair) for pair in zip(*elements, strict=True)] if elements else None,
        "kept_of": kept_of,
        "energy": _energy(share for _, share in shares),
        "lost": sum(layer["lost"] for layer in group) / len(group),
        "scale": sum(layer["scale"] for layer in group) / len(group),
        "outside": all(layer["outside"] for layer in group),
        **_signs(group),
    }


def _energy(shares: Iterable[Mapping[str, Any]]) -> float:
    """Share of the squared norm that was kept, over several experts or layers."""
    pairs = [(share["norm"] ** 2, share["energy"]) for share in shares]
    total = sum(square for square, _ in pairs)
    return sum(square * energy for square, energy in pairs) / total if total else 1.0
