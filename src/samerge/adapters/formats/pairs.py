"""What formats have in common that keep a pair of factors for each module in one safetensors file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from samerge.adapters.describe import Stored, check_dtypes, described
from samerge.adapters.formats.format import Content, Place
from samerge.adapters.model import AdaptedModule, Adapter, widest
from samerge.adapters.names import Target
from samerge.adapters.settings import KINDS
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors
from samerge.weights.fields import Kind, check_fields
from samerge.weights.hub import CONFIG_NAME
from samerge.weights.untrusted import Origin

#: Fields that all of PEFT's kinds have alike, and that matter for a merge.
_COMMON = (
    *("base_model_name_or_path", "task_type", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "modules_to_save", "fan_in_fan_out", "bias"),
)
#: Tensors of a module by what they are -> their keys.
Parts = Mapping[str, str]


def grouped(
    place: Place, key: re.Pattern[str], origin: Origin, today: Callable[[str], str] = str
) -> dict[str, dict[str, str]]:
    """The tensors of every module.

    Args:
        place: where the adapter lies.
        key: what a key looks like, with the groups `module` and `part`.
        origin: what is being read, for errors.
        today: makes one of today's keys of an older one.

    Raises:
        AdapterError: there is a tensor that is no part of a LoRA, or two mean the same.
    """
    found: dict[str, dict[str, str]] = {}
    strange = []
    for name in sorted(place.keys):
        match = key.fullmatch(today(name))
        if match is None:
            strange.append(name)
        elif match["part"] in found.setdefault(match["module"], {}):
            raise origin.refusal(f"{place.path.name} holds {match['module']}.{match['part']} twice")
        else:
            found[match["module"]][match["part"]] = name
    if strange:
        raise origin.refusal(
            f"{place.path.name} also holds {strange[0]!r} {place.tensors.entries[strange[0]].shape}"
            f"{f' and {len(strange) - 1} more tensors' if len(strange) > 1 else ''} that are no LoRA's, and leaving "
            f"them out would lose what was trained there{_told(strange)}; take them out of the file first, if they do "
            f"not matter"
        )
    return found


def _told(keys: Collection[str]) -> str:
    """What tensors beside a LoRA are, where their names say it."""
    known = {"diff": "whole weights", "diff_b": "biases", "w_norm": "norms", "b_norm": "norms"}
    found = sorted({what for key in keys if (what := known.get(key.rpartition(".")[2]))})
    return f" ({' and '.join(found)} of the base were trained, too)" if found else ""


def number(place: Place, key: str, origin: Origin) -> float:
    """A tensor that is one finite number, such as alpha.

    Raises:
        AdapterError: it is none.
    """
    entry = place.tensors.entries[key]
    value = float(place.tensors.read(key)) if math.prod(entry.shape) == 1 else math.nan
    if not math.isfinite(value):
        raise origin.refusal(f"{key} {entry.shape} of {place.path.name} must be one finite number")
    return value


def pair(
    place: Place,
    module: str,
    parts: Parts,
    down: str,
    up: str,
    origin: Origin,
    join: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Stored:
    """The two factors of a module.

    Args:
        place: where the adapter lies.
        module: its name, for errors.
        parts: its tensors.
        down: the part that is A.
        up: the part that is B.
        origin: what is being read, for errors.
        join: makes (r, in) and (out, r) of the two, where they lie otherwise; two-dimensional then.

    Raises:
        AdapterError: one is missing, is empty, or holds no floating-point numbers.
    """
    absent = [part for part in (down, up) if part not in parts]
    if absent:
        raise origin.refusal(
            f"module {module!r} has {sorted(parts)}, and no {absent[0]}; the file is incomplete, fetch it again"
        )
    file = place.tensors
    shapes = file.entries[parts[down]].shape, file.entries[parts[up]].shape
    if any(len(shape) < 2 or 0 in shape for shape in shapes) or (join and any(len(shape) != 2 for shape in shapes)):
        raise origin.refusal(
            f"module {module!r}: {down} has shape {shapes[0]} and {up} {shapes[1]}, which are no factors of an update"
        )
    kinds = {part: file.dtype(parts[part]) for part in (down, up)}
    check_dtypes(place.name, module, kinds)

    def read() -> tuple[Tensor, Tensor]:
        a, b = file.read(parts[down]), file.read(parts[up])
        return join(a, b) if join else (a, b)

    if join:
        shapes = shapes[0][::-1], shapes[1][::-1]
    return Stored(shapes, widest(kinds.values()), False, read)


def adapter(
    place: Place,
    format: str,
    modules: Mapping[str, AdaptedModule],
    config: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Adapter:
    """What was read, as an adapter.

    Args:
        place: where it lies.
        format: the name of its format.
        modules: its adapted maps.
        config: what of PEFT's configuration is known.
        notes: what the user should know of how it was read.

    Raises:
        AdapterError: it has none.
    """
    if not modules:
        raise place.origin(format).refusal(f"{place.path.name} holds no tensors of a LoRA")
    return Adapter(
        place.name,
        place.source,
        config or {},
        dict(sorted(modules.items())),
        place.tensors.sha256(),
        notes=tuple(notes),
        format=format,
        metadata=place.tensors.metadata,
        weights_name=place.path.name,
    )


def module_of(place: Place, name: str, stored: Stored, scale: float) -> Mapping[str, AdaptedModule]:
    """One adapted map from its tensors, whose shapes say its rank."""
    return dict(described(place.name, Target("linear", name), {}, stored, scale, False, stored.shapes[0][0]))


def trimmed(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """The modules with a rank of their own each: components and modules that are zero are left out.

    Of an adapter that is zero everywhere one component stays, since a file has to hold something.
    """
    found = {module: one.existing() for module, one in factors.items()}
    some = {module: one for module, one in found.items() if one.rank}
    if some:
        return some
    first = min(factors)
    one = factors[first]
    return {first: LoraFactors(one.A[:1], one.B[:, :1], one.scale)}


def kind_config(
    place: Place, kinds: Mapping[str, Kind], origin: Origin, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What the configuration of one of PEFT's other kinds says that counts, checked.

    Args:
        place: where the adapter lies.
        kinds: fields of that kind alone.
        origin: what is being read, for errors.
        needed: those of them that must be there; all by default.

    Raises:
        AdapterError: a field does not hold what it may.
    """
    common = {field: KINDS[field] for field in _COMMON}
    given = {field: value for field, value in (place.config or {}).items() if field in {*common, *kinds}}
    check_fields(given, {**common, **kinds}, CONFIG_NAME, origin, needed=needed or tuple(kinds))
    return given


def refuse_more(content: Content, path: Path, title: str, kinds: Collection[str] = ("linear", "conv")) -> None:
    """Refuse what a format has no place for.

    Args:
        content: what is to be written.
        path: where.
        title: of the format.
        kinds: the layouts that it has a place for.

    Raises:
        AdapterError: trained modules or biases, files beside the adapter, or a layout that is none of these.
    """
    doing = f"writing {path} as {title}"
    if content.extras:
        raise AdapterError(
            f"{doing}: the adapter carries {min(content.extras)!r} beside its factors, which only PEFT's format has a "
            f"place for; choose format='peft', or leave it out with modules_to_save='drop'"
        )
    if content.companions:
        raise AdapterError(
            f"{doing}: {content.companions[0].name} is to be copied beside it, and only PEFT's folder has a place for "
            f"that; choose format='peft', or companions='drop'"
        )
    strange = [module for module, layout in content.layouts.items() if layout.kind not in kinds]
    if strange:
        kind = content.layouts[strange[0]].kind
        kinds_in_words = {"embedding": "an embedding", "parameter": "a stack of parameters", "conv": "a convolution"}
        what = kinds_in_words.get(kind, "part of an attention")
        raise AdapterError(
            f"{doing}: the module {strange[0]!r} is {what}, which it has no place for; choose format='peft'"
        )
