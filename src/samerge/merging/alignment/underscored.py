"""kohya's names, with `_` for `.`, as the base's own.

`lora_unet_down_blocks_0_attentions_0_proj_in` may be one path or another: the base's names say which. The component
stays in front (`unet.`), so that the names say what they are of where the base is one model of a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from samerge.adapters import Adapter
from samerge.adapters.formats.components import is_stem, split_stem, underscored
from samerge.errors import BaseModelError
from samerge.merging.alignment.matching import Names
from samerge.weights import WeightSource


def dotted(adapter: Adapter, source: WeightSource) -> Adapter:
    """The adapter with the base's names in place of kohya's; as it is where its names have dots.

    Args:
        adapter: under any names.
        source: the base, one model or a whole pipeline.

    Raises:
        BaseModelError: a name fits no weight, or several; lists them.
    """
    stems = [module for module in adapter.modules if is_stem(module)]
    if not stems:
        return adapter
    names: dict[str, list[str]] = {}
    for tensor, shape in source.shapes.items():
        if len(shape) >= 2 and tensor.endswith(".weight"):
            name = tensor.removesuffix(".weight")
            names.setdefault(underscored(name), []).append(name)
    modules = {
        _found(adapter.name, module, names, source) if is_stem(module) else module: adapted
        for module, adapted in adapter.modules.items()
    }
    return replace(adapter, modules=dict(sorted(modules.items())))


def _found(adapter: str, stem: str, names: Mapping[str, Sequence[str]], source: WeightSource) -> str:
    components, rest = split_stem(stem)
    with_component = [name for component in components for name in names.get(f"{component}_{rest}", ())]
    bare = [] if with_component else list(names.get(rest, ()))
    found = with_component or bare
    if len(found) > 1:
        raise BaseModelError(
            f"adapter {adapter!r} does not fit the base model {source.name!r}: its module {stem!r} fits several "
            f"weights there, {sorted(found)}; give an adapter that names its modules with dots"
        )
    if not found:
        nearest = Names(f"{name}.weight" for several in names.values() for name in several).nearest(rest)
        raise BaseModelError(
            f"adapter {adapter!r} does not fit the base model {source.name!r}: its module {stem!r} has no weight there "
            f"(nearest: {nearest}). Is it an adapter of another base model, or named after the model as its makers "
            f"have it? samerge convert --format diffusers may bring it to diffusers' names"
        )
    [name] = found
    return name if with_component else f"{_component(components, source)}.{name}"


def _component(components: Sequence[str], source: WeightSource) -> str:
    """Which of the components a base of one model is."""
    kind = str(source.config.get("_class_name") or "")
    meant = "transformer" if "Transformer" in kind else components[0]
    return meant if meant in components else components[0]


def refuse_mixed_names(adapters: Sequence[Adapter]) -> None:
    """Refuse kohya's names beside others where no base says which are the same.

    Raises:
        BaseModelError: names two adapters and one module of each.
    """
    first: dict[bool, tuple[Adapter, str]] = {}
    for adapter in adapters:
        for module in adapter.modules:
            first.setdefault(is_stem(module), (adapter, module))
    if len(first) < 2:
        return
    (one, stem), (other, name) = first[True], first[False]
    raise BaseModelError(
        f"merging adapters without a base: {one.name!r} names its modules as kohya does ({stem!r}), {other.name!r} "
        f"with dots ({name!r}), and '_' for '.' does not tell which are the same; give base=, the folder of the model, "
        f"or bring them to one format first, with samerge convert"
    )
