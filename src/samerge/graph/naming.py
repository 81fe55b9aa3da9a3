"""Which tensors of a checkpoint a row of the table means: the prefix, the layers, the option that is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from samerge.errors import GraphError
from samerge.graph.blocks import Family, OneOf, Part, Stack, Sublayer, Together, parts

WAYS_ON = (
    'To go on without it, pass connectivity="local" (every layer is scored by itself), or pass a '
    "samerge.graph.FlowGraph of your own as connectivity."
)

#: Of layers, heads or experts, the most that a configuration may say.
_MOST = 100_000


@dataclass(frozen=True)
class Layers:
    """Where the layers of one stack are.

    Args:
        stack: the row's description.
        config: the configuration that describes this stack.
        order: how the names of the layers begin, in the order in which they are run; one may come several times.
    """

    stack: Stack
    config: Mapping[str, Any]
    order: tuple[str, ...]


def some(names: Iterable[str], count: int = 6) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:count]) + (f", ... ({len(names)} in all)" if len(names) > count else "")


def find_layers(family: Family, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Layers]:
    """Find the layers of every stack of a family that the checkpoint has.

    A checkpoint may hold one tower of two, or an encoder or a decoder alone.

    Raises:
        GraphError: nothing found, more than one prefix, a gap in the layers, or not as many as the configuration says.
    """
    what = f"the flow graph of a {config.get('model_type')!r} model"
    prefix = _find_prefix(family, shapes, what)
    found = []
    for stack in family.stacks:
        # The first configurations of Qwen2-VL keep the language model's keys beside vision_config.
        own: Mapping[str, Any] = (config.get(stack.config) if stack.config else None) or config
        order = _find_order(stack, prefix, own, shapes, what)
        if order:
            found.append(Layers(stack, own, order))
    if len(found) < len(family.stacks) and found[0].stack.crosses and config.get("is_encoder_decoder"):
        raise GraphError(
            f"{what}: the configuration says that there is an encoder, but no tensor "
            f"{prefix + family.stacks[0].layers[0].format(i=0)}... was found among {some(shapes)}. {WAYS_ON}"
        )
    return found


def pick(sublayer: Sublayer, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Part], list[str]]:
    """Choose among the options of a sub-layer.

    Returns:
        Its parts, and the names of the tensors that they lack. With several options it is the first that lacks
        nothing, or else the one that lacks least.
    """
    if isinstance(sublayer, OneOf):
        tries = [pick(option, layer, shapes) for option in sublayer.options]
        return min(tries, key=lambda tried: len(tried[1]))  # the first of the least: min is stable
    if isinstance(sublayer, Together):
        chosen, missing = [], []
        for part in sublayer.parts:
            more, lacking = pick(part, layer, shapes)
            chosen += more
            missing += lacking
        return chosen, missing
    return [sublayer], [name for name in sublayer.tensors(layer) if name not in shapes]


def _find_prefix(family: Family, shapes: Mapping[str, tuple[int, ...]], what: str) -> str:
    """What stands before the row's names: '' for a bare model, 'model.', 'bert.', ... for one with a head."""
    anchors = {
        name
        for stack in family.stacks
        for template in stack.layers
        for part in parts(next(iter(stack.sublayers.values())))
        for name in part.tensors(template.format(i=0, j=0))
    }
    prefixes = set()
    for name in shapes:
        for anchor in anchors:
            if name.endswith(anchor) and (len(name) == len(anchor) or name[-len(anchor) - 1] == "."):
                prefixes.add(name[: -len(anchor)])
    if not prefixes:
        raise GraphError(
            f"{what} needs the tensors of its first layer, such as {sorted(anchors)[0]!r} (with any prefix); "
            f"none is among the tensors found: {some(shapes)}. {WAYS_ON}"
        )
    if len(prefixes) > 1:
        raise GraphError(
            f"{what} can begin at several places: layers were found under the prefixes {sorted(prefixes)}. "
            f"Pass the tensors of one model only. {WAYS_ON}"
        )
    return prefixes.pop()


def _find_order(
    stack: Stack, prefix: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], what: str
) -> tuple[str, ...]:
    for template in stack.layers:
        pattern = re.escape(prefix + template).replace(r"\{i\}", r"(\d+)").replace(r"\{j\}", r"(\d+)")
        matches = [match for match in (re.match(pattern, name) for name in shapes) if match]
        if not matches:
            continue
        numbers = {tuple(int(number) for number in match.groups()) for match in matches}
        count = len({number[0] for number in numbers})
        if {number[0] for number in numbers} != set(range(count)):
            present = sorted({number[0] for number in numbers})
            raise GraphError(f"{what}: the layers {prefix + template!r} have gaps, only {present} were found")
        told = told_number(config, stack.depth, what)
        if stack.shared:
            return _shared_order(prefix + template, numbers, count, told, config, what)
        if told is not None and told != count:
            raise GraphError(
                f"{what}: the configuration says {told} layers, but {count} were found under {prefix + template!r}. "
                "Check that the configuration belongs to this checkpoint, and that no shard is missing"
            )
        return tuple(prefix + template.format(i=i) for i in range(count))
    return ()


def _shared_order(
    template: str, numbers: set[tuple[int, ...]], groups: int, told: int | None, config: Mapping[str, Any], what: str
) -> tuple[str, ...]:
    """Albert: `num_hidden_layers` steps through a few groups of layers, each group used several times in a row."""
    if told is None:
        raise GraphError(f"{what}: its layers are shared, so the configuration has to say num_hidden_layers")
    told_groups = told_number(config, ("num_hidden_groups",), what)
    if told_groups not in (None, groups):
        raise GraphError(f"{what}: the configuration says {told_groups} groups of layers, {groups} found")
    order = []
    for step in range(told):
        group = int(step / (told / groups))
        order += [template.format(i=i, j=j) for i, j in sorted(numbers) if i == group]
    return tuple(order)


def told_number(config: Mapping[str, Any], fields: tuple[str, ...], what: str) -> int | None:
    """What a configuration says of how many there are of something; None where it says nothing.

    Args:
        config: the model's.
        fields: the names that it may have there, of which the first is taken that is given.
        what: for errors: what is being done.

    Raises:
        GraphError: it is no whole number, or none that a model has.
    """
    field = next((name for name in fields if config.get(name) is not None), None)
    if field is None:
        return None
    value = config[field]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
        raise GraphError(
            f"{what}: the configuration says {field}={repr(value)[:80]}, and not a whole number from 1 to {_MOST}"
        )
    return value
