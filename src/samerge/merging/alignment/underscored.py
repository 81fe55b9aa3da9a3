"""kohya's names, with `_` for `.`, as the base's own.

`lora_unet_down_blocks_0_attentions_0_proj_in` may be one path or another: the base's names say which. The component
stays in front (`unet.`), so that the names say what they are of where the base is one model of a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from samerge.adapters import Adapter
from samerge.adapters.formats.components import bare, in_files, is_maker, is_stem, split_stem, underscored
from samerge.adapters.formats.makers import by_diffusers
from samerge.errors import BaseModelError
from samerge.merging.alignment.matching import Names, NotInBaseError, refuse_doubles, without
from samerge.options.module_weights import ModuleWeights
from samerge.weights import WeightSource


def dotted(adapter: Adapter, source: WeightSource, rules: ModuleWeights | None = None) -> Adapter:
    """The adapter with the base's names in place of kohya's; as it is where its names have dots.

    Where the base has not all of them and some are the names of the model's makers, diffusers brings these to its own.

    Args:
        adapter: under any names.
        source: the base, one model or a whole pipeline.
        rules: weights by module; what has 0 by its own name need not be in the base.

    Raises:
        BaseModelError: a name fits no weight, or several; lists them.
        AdapterError: diffusers cannot convert a name.
        OptionError: diffusers is not installed.
    """
    if not any(is_stem(module) or is_maker(module) for module in adapter.modules):
        return adapter
    names = _Underscored(source)
    strange = [module for module in adapter.modules if not names.has(module)]
    theirs = any(is_maker(bare(module)) for module in strange)
    if theirs and not any(is_maker(name) for name in source.shapes):
        adapter = by_diffusers(adapter, [one for one in strange if is_stem(one) or is_maker(one)], source.name)
    missing = [module for module in adapter.modules if is_stem(module) and not names.has(module)]
    if rules is not None:
        adapter = without(adapter, missing, rules)
        missing = [module for module in missing if module in adapter.modules]
    there = [module for module in adapter.modules if module not in set(missing)]
    meant = {module: names.found(adapter.name, module) if is_stem(module) else module for module in there}
    if missing:
        raise names.missing(adapter, missing)
    refuse_doubles(adapter.name, meant, source.name)
    modules = {meant[module]: adapted for module, adapted in adapter.modules.items()}
    return replace(adapter, modules=dict(sorted(modules.items())))


class _Underscored:
    """The weights of a base, looked up by kohya's names.

    Args:
        source: the base.
    """

    def __init__(self, source: WeightSource) -> None:
        self.source = source
        self.names: dict[str, list[str]] = {}
        for tensor, shape in source.shapes.items():
            if len(shape) >= 2 and tensor.endswith(".weight"):
                name = tensor.removesuffix(".weight")
                for spelled in {name, in_files(name), in_files(f"text_encoder.{name}").removeprefix("text_encoder.")}:
                    self.names.setdefault(underscored(spelled), []).append(name)

    @cached_property
    def _dotted(self) -> Names:
        return Names(f"{name}.weight" for several in self.names.values() for name in several)

    def has(self, module: str) -> bool:
        """Whether the base has a weight that a name, kohya's or another, can mean."""
        return bool(any(self._fitting(module)) if is_stem(module) else self._dotted.find(module))

    def _fitting(self, stem: str) -> tuple[list[str], list[str]]:
        """The weights that one of kohya's names can mean: with the component in their names, or without."""
        components, rest = split_stem(stem)
        whole = [name for component in components for name in self.names.get(f"{component}_{rest}", ())]
        return whole, [] if whole else list(self.names.get(rest, ()))

    def found(self, adapter: str, stem: str) -> str:
        """The name that one of kohya's means, which the base has.

        Raises:
            BaseModelError: it fits several weights; lists them.
        """
        whole, bare = self._fitting(stem)
        found = whole or bare
        if len(found) > 1:
            raise BaseModelError(
                f"adapter {adapter!r} does not fit the base model {self.source.name!r}: its module {stem!r} fits "
                f"several weights there, {sorted(found)}; give an adapter that names its modules with dots"
            )
        [name] = found
        return name if whole else f"{_component(split_stem(stem)[0], self.source)}.{name}"

    def missing(self, adapter: Adapter, stems: Sequence[str]) -> NotInBaseError:
        """What to raise of those of an adapter's modules that the base has not got."""
        first = stems[0]
        more = f"; and {len(stems) - 1} more modules" if len(stems) > 1 else ""
        return NotInBaseError(
            f"adapter {adapter.name!r} does not fit the base model {self.source.name!r}: its module {first!r} has no "
            f"weight there (nearest: {self._dotted.nearest(split_stem(first)[1])}){more}. Is it an adapter of another "
            f"base model?",
            stems,
            [module for module in adapter.modules if module not in stems],
        )


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
