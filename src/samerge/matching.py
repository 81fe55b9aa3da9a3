"""Which tensor of the base each adapted module belongs to.

The names need not be equal: an adapter of `BertModel` says `encoder.layer.0...`, the checkpoint of `BertForMaskedLM`
says `bert.encoder.layer.0...`. A module is matched exactly, or else by the only tensor whose name differs from it by a
prefix alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from samerge.errors import BaseModelError


def match_modules(
    adapter: str, modules: Iterable[str], shapes: Mapping[str, tuple[int, ...]], base: str
) -> dict[str, str]:
    """Module name -> tensor name.

    Args:
        adapter: the adapter's name, for messages.
        modules: names of its modules.
        shapes: the base's tensors.
        base: the base's name, for messages.

    Raises:
        BaseModelError: a module fits no tensor, or several; shows the nearest names.
    """
    plain = {tensor.removesuffix(".weight"): tensor for tensor in shapes if len(shapes[tensor]) >= 2}
    tails: dict[str, list[str]] = {}
    for stem in plain:
        parts = stem.split(".")
        for cut in range(1, len(parts)):
            tails.setdefault(".".join(parts[cut:]), []).append(stem)
    found, missing = {}, []
    for module in modules:
        candidates = _candidates(module, plain, tails)
        if len(candidates) == 1:
            found[module] = plain[candidates[0]]
        else:
            missing.append((module, candidates))
    if missing:
        module, candidates = missing[0]
        near = candidates or get_close_matches(module, plain, n=3, cutoff=0.3)
        what = "fits several weights" if candidates else "has no weight"
        raise BaseModelError(
            f"adapter {adapter!r} does not fit the base model {base!r}: its module {module!r} {what} there"
            f"{f' (and {len(missing) - 1} more modules)' if len(missing) > 1 else ''}; nearest: {list(near)[:3]}. "
            f"Is it an adapter of another base model?"
        )
    return found


def _candidates(module: str, plain: Mapping[str, str], tails: Mapping[str, list[str]]) -> list[str]:
    if module in plain:
        return [module]
    parts = module.split(".")
    for cut in range(1, len(parts)):
        shorter = ".".join(parts[cut:])
        if shorter in plain and "." in shorter:
            return [shorter]
    return tails.get(module, [])
