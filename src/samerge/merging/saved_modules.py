"""Fully trained modules and token rows of several adapters: their mean, one's, or the base with all changes added.

| `modules_to_save` | merged, of the adapters that have it |
|---|---|
| "average" | the plain mean, whatever the weights |
| "take:<adapter>" | that adapter's |
| "update" | base + sum_n w_n (trained_n - base): the sum of updates, as for the factors |
| "drop" | nothing (`trained_parts`) |

`scaling` acts on an update as it does on a bias: a number multiplies it, "auto" divides it by the number of adapters
that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from samerge.adapters import Adapter, widest
from samerge.adapters.extras import saved_modules
from samerge.adapters.model import Load
from samerge.errors import AdapterError, BaseModelError
from samerge.merging.alignment.views import origin
from samerge.options.scaling import auto_factor
from samerge.weights import WeightSource

#: From a tensor's name, what each adapter has of it, and what the base has: the merged tensor.
_Combine = Callable[[str, Mapping[str, Tensor], Load], Tensor]


class SavedParts:
    """What several adapters trained whole, merged tensor by tensor when it is asked for.

    Args:
        active: the adapters of a weight other than 0, with their weights.
        choice: "average", "update" or "take:<adapter>".
        scaling: of an update.
        dtype: of the output; by default the widest that a tensor has.
        source: the base; needed for "update".
        factor: what an update's weight is multiplied with, from the module and the adapter.
    """

    def __init__(
        self,
        active: Sequence[tuple[Adapter, float]],
        choice: str,
        scaling: float | str,
        dtype: torch.dtype | None,
        source: WeightSource | None,
        factor: Callable[[str, str], float],
    ) -> None:
        taken = choice.removeprefix("take:")
        self.source = source
        self._chosen = [adapter for adapter, _ in active if choice in ("average", "update") or adapter.name == taken]
        self._saved = _saved(self._chosen, source)
        weights = {adapter.name: weight for adapter, weight in active}

        def combine(name: str, parts: Mapping[str, Tensor], base: Load) -> Tensor:
            if choice != "update":
                return _mean(name, parts, dtype)
            share = float(scaling) if auto_factor(scaling) is None else 1 / len(parts)
            module = name.partition("[")[0] if name.endswith("]") else name.rpartition(".")[0]  # a row, or a tensor
            own = {who: share * weights[who] * factor(module, who) for who in parts}
            return _updated(name, parts, base(), own, dtype)

        self._combine = combine

    @property
    def names(self) -> list[str]:
        """The tensors that are saved whole, by name in the base."""
        return sorted(self._saved)

    @property
    def modules(self) -> list[str]:
        """`modules_to_save` for all of them."""
        return _modules(self._chosen, self._saved, {} if self.source is None else self.source.shapes)

    def tensor(self, name: str) -> Tensor:
        """One of them, merged.

        Raises:
            AdapterError: the adapters do not fit each other.
            BaseModelError: the base lacks what is to be updated, or has it in another shape.
        """
        found = self._saved[name]
        return self._combine(name, {who: load() for who, load in found.items()}, _base(self.source, name, found))

    def rows(self) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """The trained rows by embedding, and which they are.

        Raises:
            BaseModelError: the base lacks what is to be updated.
        """
        return _tokens(self._chosen, self.source, self._combine)


def tied(adapter: Adapter, source: WeightSource | None) -> dict[str, Load]:
    """The copies that an adapter holds of what it trained itself, under the name of a weight that is tied to it.

    `ensure_weight_tying` writes the trained embedding twice, once as the output head.
    """
    trained = {_origin(source, name): load for name, load in adapter.extras.saved.items()}
    if source is None and adapter.config.get("ensure_weight_tying"):
        loads = list(trained.values())
        return {name: copy for name, copy in adapter.extras.copies.items() if any(_same(copy, one) for one in loads)}
    return {
        name: copy
        for name, copy in adapter.extras.copies.items()
        if (one := trained.get(_origin(source, name))) is not None and _same(copy, one)
    }


def _origin(source: WeightSource | None, name: str) -> str:
    return name if source is None else origin(source, name)


def _is_alias(source: WeightSource | None, embedding: str) -> bool:
    """Whether an embedding goes by the weight of another one: an output head by the input embedding's."""
    return _origin(source, f"{embedding}.weight").split(".")[-2] != embedding.rpartition(".")[2]


def _same(one: Load, other: Load) -> bool:
    a, b = one(), other()
    return a.shape == b.shape and torch.equal(a.to(b.device, b.dtype), b)


def _saved(chosen: Sequence[Adapter], source: WeightSource | None) -> dict[str, dict[str, Load]]:
    """Who has every tensor that is saved whole."""
    found: dict[str, dict[str, Load]] = {}
    for adapter in chosen:
        for name, load in {**adapter.extras.saved, **tied(adapter, source)}.items():
            found.setdefault(name, {})[adapter.name] = load
    return found


def _base(source: WeightSource | None, name: str, whose: Iterable[str], row: int | None = None) -> Load:
    """Reads the base's tensor of this name, or a row of it."""

    def read() -> Tensor:
        assert source is not None  # `check_extras` has seen to it
        if name not in source.shapes:
            raise BaseModelError(
                f"updating the trained module {name!r} of {', '.join(map(repr, whose))}: the base model "
                f"{source.name!r} has no such weight, so that there is no change to tell (a head that was added for a "
                f"task?); choose modules_to_save='average', 'take:<adapter>' or 'drop'"
            )
        shape = source.shapes[name]
        if row is None:
            return source.read(name, 0, shape[0] if shape else 1)
        if row >= shape[0]:
            raise BaseModelError(
                f"updating row {row} of {name!r}: that of the base model {source.name!r} has {shape[0]} rows; give "
                f"the model with the resized vocabulary as the base"
            )
        return source.read(name, row, row + 1)[0]

    return read


def _modules(chosen: Sequence[Adapter], saved: Collection[str], base: Iterable[str]) -> list[str]:
    """`modules_to_save` for the tensors that are saved whole: in the adapters' own words, or else in full.

    A word means all modules whose names end with it, and PEFT loads no file that lacks one of them: where some were
    left out, by their weights or by who wrote the adapter, the names stand in full.

    Args:
        chosen: the adapters.
        saved: the tensors, by name in the base.
        base: all tensors of the base; empty without one.
    """
    words = {word for adapter in chosen for word in saved_modules(adapter.config)}
    whole = {name.rpartition(".")[0] for name in saved}
    lacking = {owner for name in base if (owner := name.rpartition(".")[0]) not in whole}
    partly = {word for word in words if any(_means(word, f"{owner}.weight") for owner in lacking)}
    found = set()
    for name in saved:
        meant = {word for word in words if _means(word, name)}
        found |= (meant - partly) or {name.rpartition(".")[0]}
    return sorted(found)


def _means(word: str, name: str) -> bool:
    """Whether an entry of `modules_to_save` means a module that a tensor lies in."""
    parts = name.split(".")
    return any(".".join(parts[:cut]).endswith(word) for cut in range(1, len(parts)))


def _tokens(
    chosen: Sequence[Adapter], source: WeightSource | None, combine: _Combine
) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The rows of every embedding: each index combined over the adapters that trained it.

    Of weights that are tied to one another the embedding stands for all: PEFT trains them together.
    """
    rows: dict[str, dict[int, dict[str, Tensor]]] = {}
    first: dict[str, str] = {}
    for adapter in chosen:
        for embedding, tokens in sorted(adapter.extras.tokens.items(), key=lambda item: _is_alias(source, item[0])):
            place = first.setdefault(_origin(source, f"{embedding}.weight"), embedding)
            for index, row in zip(tokens.indices, tokens.load(), strict=True):
                rows.setdefault(place, {}).setdefault(index, {}).setdefault(adapter.name, row)
    merged: dict[str, Tensor] = {}
    for embedding, table in rows.items():
        name = f"{embedding}.weight"
        each = [combine(f"{embedding}[{i}]", table[i], _base(source, name, table[i], i)) for i in sorted(table)]
        merged[embedding] = torch.stack(each)
    return merged, {embedding: sorted(table) for embedding, table in rows.items()}


def _mean(name: str, parts: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
    """The plain mean, in float32; what is no floating-point number has to be equal in all."""
    shapes = {adapter: tuple(part.shape) for adapter, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise AdapterError(
            f"averaging the trained module {name!r}: its shapes differ ({shapes}); take one adapter's with "
            f"modules_to_save='take:<adapter>', or leave it out with 'drop'"
        )
    whole = _whole_numbers("averaging", name, parts)
    if whole is not None:
        return whole
    mean = torch.stack([part.float().cpu() for part in parts.values()]).mean(0)
    return mean.to(dtype or widest(part.dtype for part in parts.values()))


def _updated(
    name: str, parts: Mapping[str, Tensor], base: Tensor, weights: Mapping[str, float], dtype: torch.dtype | None
) -> Tensor:
    """base + sum_n w_n (trained_n - base), as (1 - sum_n w_n) base + sum_n w_n trained_n: of one, at 1, its own."""
    for adapter, part in parts.items():
        if part.shape != base.shape:
            raise BaseModelError(
                f"updating the trained module {name!r}: adapter {adapter!r} has it as {tuple(part.shape)}, the base as "
                f"{tuple(base.shape)}, so that there is no change to tell; give the base that was trained, or choose "
                f"modules_to_save='take:<adapter>' or 'drop'"
            )
    whole = _whole_numbers("updating", name, parts)
    if whole is not None:
        return whole
    total = base.detach().cpu().float() * (1 - sum(weights.values()))
    for adapter, part in parts.items():
        total.add_(part.cpu().float(), alpha=weights[adapter])
    return total.to(dtype or widest(part.dtype for part in parts.values()))


def _whole_numbers(doing: str, name: str, parts: Mapping[str, Tensor]) -> Tensor | None:
    """What all have alike of a tensor that holds no floating-point numbers; None of one that does."""
    first, *others = parts.values()
    if first.is_floating_point():
        return None
    if any(not torch.equal(first, other) for other in others):
        raise AdapterError(
            f"{doing} the trained module {name!r}: it holds {first.dtype} values that differ between "
            f"{list(parts)}; take one adapter's with modules_to_save='take:<adapter>'"
        )
    return first.cpu()
