"""Which tensor of the base each adapted module belongs to.

The names need not be equal: an adapter of `BertModel` says `encoder.layer.0...`, the checkpoint of `BertForMaskedLM`
says `bert.encoder.layer.0...`; and the same language model inside a vision model is `language_model.model.layers...` in
older checkpoints and `model.language_model.layers...` in newer ones. A module is matched exactly, or else by the only
tensor whose name differs from it by a prefix alone, or else by the only one that differs in nothing but leading `model`
and `language_model`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from samerge.adapters import Adapter
from samerge.errors import BaseModelError
from samerge.graph.widths import matrix_shape
from samerge.options.module_names import layer_numbers
from samerge.options.module_weights import ModuleWeights

#: Components that transformers moved around at the front of names.
_CONTAINERS = ("model", "language_model")
_SHOWN = 3


class NotInBaseError(BaseModelError):
    """Modules of an adapter have no weight in the base, or several.

    Args:
        message: what to say.
        missing: the modules that have none.
        there: those that have one.
    """

    def __init__(self, message: str, missing: Collection[str], there: Collection[str]) -> None:
        super().__init__(message)
        self.missing, self.there = missing, there


class Names:
    """The tensors of a base, looked up by the names that adapters give their modules.

    Args:
        tensors: full names.

    Example:
        >>> names = Names(["bert.layer.0.q.weight", "bert.layer.0.q.bias"])
        >>> names.find("layer.0.q"), names.find("layer.0.q.bias"), names.find("layer.1.q")
        (['bert.layer.0.q.weight'], ['bert.layer.0.q.bias'], [])
    """

    def __init__(self, tensors: Iterable[str]) -> None:
        self.plain: dict[str, str] = {}
        self.tails: dict[str, list[str]] = {}
        self.bare: dict[str, list[str]] = {}
        for tensor in tensors:
            stem = tensor.removesuffix(".weight")
            self.plain[stem] = tensor
            parts = stem.split(".")
            for cut in range(1, len(parts)):
                self.tails.setdefault(".".join(parts[cut:]), []).append(stem)
            self.bare.setdefault(bare(stem), []).append(stem)

    def find(self, name: str) -> list[str]:
        """The tensors that a name can mean: one where it fits, several where it is ambiguous, none otherwise."""
        return [self.plain[stem] for stem in self._stems(name.removesuffix(".weight"))]

    def _stems(self, name: str) -> list[str]:
        if name in self.plain:
            return [name]
        parts = name.split(".")
        for cut in range(1, len(parts)):
            shorter = ".".join(parts[cut:])
            if shorter in self.plain and "." in shorter:
                return [shorter]
        return self.tails.get(name) or self.bare.get(bare(name)) or []

    def nearest(self, name: str) -> list[str]:
        """The most similar names, for messages."""
        digits = set(layer_numbers(name))
        same = [stem for stem in self.plain if digits <= set(layer_numbers(stem))]
        return get_close_matches(name, same or self.plain, n=2, cutoff=0.3)


def in_one_model(
    candidates: Mapping[str, Sequence[str]],
    updates: Mapping[str, tuple[int, int]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, str] | None:
    """The weights that names mean which fit several models inside a base, as CLIP's text and vision models.

    Args:
        candidates: module name -> the tensors that it can mean.
        updates: module name -> (out, in) of the adapter's update.
        shapes: the base's tensors.

    Returns:
        Those of the only inner model that has all modules, all in the adapter's widths; None where there is none such,
        or several.

    Example:
        >>> shapes = {"text.layers.0.q.weight": (4, 4), "vision.layers.0.q.weight": (6, 6)}
        >>> in_one_model({"layers.0.q": list(shapes)}, {"layers.0.q": (6, 6)}, shapes)
        {'layers.0.q': 'vision.layers.0.q.weight'}
    """
    inner: dict[tuple[str, str], dict[str, str]] = {}
    for module, tensors in candidates.items():
        for tensor in tensors:
            if updates[module] in (there := matrix_shape(shapes[tensor], None), there[::-1]):
                inner.setdefault(differ(module, tensor.removesuffix(".weight")), {})[module] = tensor
    whole = [found for found in inner.values() if len(found) == len(candidates)]
    return whole[0] if len(whole) == 1 else None


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
        BaseModelError: a module fits no tensor, or several; shows the first few beside the nearest names.
    """
    names = Names(tensor for tensor in shapes if len(shapes[tensor]) >= 2)
    found: dict[str, str] = {}
    missing: list[tuple[str, list[str]]] = []
    for module in modules:
        candidates = names.find(module)
        if len(candidates) == 1:
            found[module] = candidates[0]
        else:
            missing.append((module, candidates))
    if missing:
        listed = "; ".join(_shown(module, candidates, names) for module, candidates in missing[:_SHOWN])
        doubt = any(len(candidates) > 1 for _, candidates in missing)
        more = f"; and {len(missing) - _SHOWN} more modules" if len(missing) > _SHOWN else ""
        raise NotInBaseError(
            f"adapter {adapter!r} does not fit the base model {base!r}: {listed}{more}. "
            + ("Shapes do not tell which is meant; is one of the models in it the base? " if doubt else "")
            + "Is it an adapter of another base model?",
            [module for module, candidates in missing if not candidates],
            [*found, *(module for module, candidates in missing if candidates)],
        )
    refuse_doubles(adapter, found, base)
    return found


def refuse_doubles(adapter: str, found: Mapping[str, str], base: str) -> None:
    """Refuse two modules of an adapter that mean the same weight.

    Raises:
        BaseModelError: names both.
    """
    seen: dict[str, str] = {}
    for module, tensor in found.items():
        if tensor in seen:
            raise BaseModelError(
                f"adapter {adapter!r} does not fit the base model {base!r}: its modules {seen[tensor]!r} and "
                f"{module!r} both fit {tensor!r} there. Is it an adapter of another base model?"
            )
        seen[tensor] = module


def without(adapter: Adapter, modules: Collection[str], rules: ModuleWeights) -> Adapter:
    """The adapter without those of some modules, which the base has not got, that have the weight 0."""
    lost = {m for m in modules if rules.of(adapter.modules[m].own or m, adapter.name) == 0}
    return replace(adapter, modules={name: one for name, one in adapter.modules.items() if name not in lost})


def _shown(module: str, candidates: list[str], names: Names) -> str:
    if candidates:
        return f"its module {module!r} fits several weights there, {candidates[:3]}"
    return f"its module {module!r} has no weight there (nearest: {names.nearest(module)})"


def differ(one: str, other: str) -> tuple[str, str]:
    """What two names begin with before the ending that they share.

    Example:
        >>> differ("policy.model.layers.0.q", "model.layers.0.q"), differ("a.0.q", "a.0.q")
        (('policy', ''), ('', ''))
    """
    a, b = one.split("."), other.split(".")
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    return ".".join(a[: len(a) - shared]), ".".join(b[: len(b) - shared])


def bare(stem: str) -> str:
    """A name without the `model` and `language_model` that it begins with; a text encoder's without `text_model`."""
    parts = stem.split(".")
    if parts[0].startswith("text_encoder") and parts[1:2] == ["text_model"]:
        del parts[1]
    while len(parts) > 1 and parts[0] in _CONTAINERS:
        parts = parts[1:]
    return ".".join(parts)
