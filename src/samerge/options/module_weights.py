"""`modules`: the strength of adapters in single modules, by pattern.

Patterns are those of a shell (`*`, `?`, `[0-9]`), with letter case, and match a module's whole name or what follows any
dot in it: `layers.[0-9].*` is the first ten layers whatever stands before. A name of an expert in a stack matches with
and without its number, and a module that an adapter's own file calls otherwise than the base under both names. Where
several patterns match, the last one wins, for each adapter among those that speak of it: the general one first, the
exceptions after it. The value multiplies the adapter's own weight; 0 is as if the adapter had not got the module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any

from samerge.errors import OptionError
from samerge.options.kinds import Kind, check_strength
from samerge.options.module_names import expert_of, module_type

_HELP = "a mapping of patterns to a number, or to a mapping of adapters to numbers"


@dataclass(frozen=True)
class Rule:
    """A pattern and what it says.

    Args:
        pattern: of modules.
        adapter: whom it speaks of; None for all.
        weight: what is multiplied with the adapter's own weight.
    """

    pattern: str
    adapter: str | None
    weight: float

    def matches(self, module: str) -> bool:
        """Whether it speaks of a module.

        Example:
            >>> rule = Rule("layers.[0-9].*", None, 0.5)
            >>> rule.matches("model.layers.3.mlp.up_proj"), rule.matches("model.layers.13.mlp.up_proj")
            (True, False)
        """
        found = _compiled(self.pattern)
        stem, _ = expert_of(module)
        starts = [0, *(place + 1 for place, letter in enumerate(module) if letter == ".")]
        return any(found.match(name[start:]) for name in dict.fromkeys([module, stem]) for start in starts)


@dataclass(frozen=True)
class ModuleWeights:
    """All rules, in order.

    Example:
        >>> weights = module_weights().read("modules", {"*.mlp.*": 0.5, "layers.0.*": {"math": 0}})
        >>> weights.of("layers.0.mlp.up", "math"), weights.of("layers.0.mlp.up", "code"), weights.of("head", "code")
        (0.0, 0.5, 1.0)
    """

    rules: tuple[Rule, ...]

    def of(self, module: str, adapter: str, own: str = "") -> float:
        """What an adapter's weight is multiplied with in a module; 1 where no rule speaks of it.

        Args:
            module: its name.
            adapter: whose.
            own: its name in the adapter's own file, where that is another.
        """
        found = self._deciding(module, adapter, own)
        return 1.0 if found is None else self.rules[found].weight

    def absent(self, own: str, adapter: str) -> bool:
        """Whether an adapter is without a module, whatever the base may call it: no later rule says otherwise."""
        found = self._deciding(own, adapter)
        return found is not None and not any(
            rule.weight for rule in self.rules[found:] if rule.adapter in (None, adapter)
        )

    def _deciding(self, module: str, adapter: str, own: str = "") -> int | None:
        for number, rule in reversed(list(enumerate(self.rules))):
            if rule.adapter in (None, adapter) and (rule.matches(module) or (own and rule.matches(own))):
                return number
        return None

    def check(self, modules: Mapping[str, Collection[tuple[str, ...]]], adapters: Collection[str]) -> list[int]:
        """How many modules each rule speaks of: of its adapter, or of all.

        Args:
            modules: adapter -> the names of each module that it has, of the adapters that take part.
            adapters: names of all adapters.

        Raises:
            OptionError: a pattern matches none, or a rule names an adapter that there is not.
        """
        everyone = sorted({one for several in modules.values() for one in several})
        counts: list[int] = []
        for rule in self.rules:
            if rule.adapter is not None and rule.adapter not in adapters:
                raise OptionError(
                    f"modules names the adapter {rule.adapter!r} for {rule.pattern!r}, which is not in this merge; it "
                    f"has {sorted(adapters)}"
                )
            if not any(rule.matches(name) for one in everyone for name in one):
                raise _no_match(rule, "the adapters; it must match", "They have", everyone)
            whose = everyone if rule.adapter is None else modules.get(rule.adapter, ())
            counts.append(len({one[0] for one in whose if any(map(rule.matches, one))}))
            if not counts[-1] and rule.weight and rule.adapter in modules:  # with 0 it is as it is
                told = f"the adapter {rule.adapter!r}, though others'; it must match"
                raise _no_match(rule, told, "It has", sorted(whose))
        return counts

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, from which it is read again."""
        found: dict[str, Any] = {}
        for rule in self.rules:
            if rule.adapter is None:
                found[rule.pattern] = rule.weight
            else:
                found.setdefault(rule.pattern, {})[rule.adapter] = rule.weight
        return found


def _no_match(rule: Rule, whose: str, have: str, names: Collection[tuple[str, ...]]) -> OptionError:
    kinds = sorted({module_type(expert_of(one[0])[0]) for one in names})
    return OptionError(
        f"modules has the pattern {rule.pattern!r}, which matches no module of {whose} a whole name, or all that "
        f"follows a dot in it. {have} "
        f"{', '.join(kinds[:12])}{f' and {len(kinds) - 12} more kinds' if len(kinds) > 12 else ''}"
    )


def module_weights() -> Kind:
    """Patterns of modules, each with a number or with numbers by adapter; as text "GLOB=W" or "GLOB=ADAPTER:W"."""

    def read(name: str, value: Any) -> ModuleWeights:
        if isinstance(value, ModuleWeights):
            return value
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Mapping):
            rules = [rule for pattern, given in value.items() for rule in _rules(name, pattern, given)]
        elif isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
            rules = [_rule(name, one) for one in value]
        else:
            raise OptionError(f"{name}={value!r} must be {_HELP}, such as {{'*.mlp.*': 0.5}}")
        if not rules:
            raise OptionError(f"{name} is empty; it must be {_HELP}, such as {{'*.mlp.*': 0.5}}")
        _no_mixture(name, rules)
        return ModuleWeights(tuple(rules))

    annotation = "Mapping[str, float | Mapping[str, float]]"
    by_adapter = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "number"}}
    schema = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"minLength": 1},
        "additionalProperties": {"anyOf": [{"type": "number"}, by_adapter]},
    }
    return Kind(read, annotation, "GLOB=[ADAPTER:]W", flag="module-weight", many=True, schema=schema)


def _rules(name: str, pattern: Any, given: Any) -> list[Rule]:
    if not isinstance(pattern, str) or not pattern:
        raise OptionError(f"{name} has the pattern {pattern!r}; a pattern is text, such as '*.mlp.*'")
    if not isinstance(given, Mapping):
        return [Rule(pattern, None, check_strength(f"{name}[{pattern!r}]", given))]
    if not given:
        raise OptionError(f"{name}[{pattern!r}] is empty; give a number, or one for each adapter by name")
    return [
        Rule(pattern, str(adapter), check_strength(f"{name}[{pattern!r}][{adapter!r}]", weight))
        for adapter, weight in given.items()
    ]


def _rule(name: str, text: str) -> Rule:
    pattern, _, value = text.rpartition("=")
    adapter, colon, weight = value.rpartition(":")
    if not pattern or (colon and not adapter):
        raise OptionError(f"{name}={text!r} must be GLOB=WEIGHT or GLOB=ADAPTER:WEIGHT, such as '*.mlp.*=0.5'")
    return Rule(pattern, adapter or None, check_strength(f"{name}[{pattern!r}]", weight))


def _no_mixture(name: str, rules: list[Rule]) -> None:
    """Refuse a pattern that is given twice for the same adapter, for all and for one, or in two places."""
    seen: dict[str, set[str | None]] = {}
    for before, rule in zip([None, *rules], rules, strict=False):
        others = seen.setdefault(rule.pattern, set())
        apart = others and before is not None and before.pattern != rule.pattern
        if apart or rule.adapter in others or (others and None in {*others, rule.adapter}):
            raise OptionError(
                f"{name} has the pattern {rule.pattern!r} more than once; give it in one place, with a number for all "
                f"adapters or with one for each by name"
            )
        others.add(rule.adapter)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
