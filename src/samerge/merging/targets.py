"""Which modules a merged adapter targets, in PEFT's words.

With a base, the shortest names that mean exactly the adapted modules of the model in memory. Without one nobody knows
which other modules that model has, nor how it names them: the adapters' own words are kept, so that whatever loads the
adapters loads the merge.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from samerge.adapters import Adapter, servable
from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors
from samerge.methods.problem import Problem
from samerge.options.module_names import expert_of, stem_of

#: The fields of a LoraConfig that say together which modules it means.
_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def targets_of(
    problem: Problem, experts: Sequence[Adapter], factors: Mapping[str, LoraFactors], layouts: Mapping[str, Layout]
) -> dict[str, Any]:
    """The fields of `adapter_config.json` that resolve to exactly the merged adapter's modules.

    Args:
        problem: the adapters as they were brought together.
        experts: the adapters.
        factors: the merged adapter's, by module.
        layouts: of all its modules.
    """
    plain = sorted(layouts[m].path(m) for m in factors if layouts[m].kind not in ("parameter", "out_proj"))
    parameters = sorted({expert_of(m)[0] for m in factors if layouts[m].kind == "parameter"})
    if problem.source is None:
        return {**as_trained([e.config for e in experts], plain), "target_parameters": parameters or None}
    stems = {stem_of(tensor): tensor for tensor, shape in problem.source.shapes.items() if len(shape) >= 2}
    others = set(stems) - {stem_of(module) for module in factors}
    owners = {parameter.rpartition(".")[0] for parameter in parameters}
    bare = {stems[stem] for stem in others} | {f"{m}.weight" for m in plain}
    shortest = servable.target_modules(parameters, bare)
    return {
        "target_modules": servable.target_modules(plain, others | owners | {f"{m}.out_proj" for m in plain}),
        "target_parameters": _in_their_words(experts, shortest, problem) or None,
    }


def as_trained(configs: Sequence[Mapping[str, Any]], modules: Collection[str]) -> dict[str, Any]:
    """What several configurations target together, in their own words where these are the same or can be joined.

    Args:
        configs: of the adapters.
        modules: those that have to be targeted; the ones that no configuration means are named in full.

    Example:
        >>> as_trained([{"target_modules": ["q"]}, {"target_modules": ["v"]}], ["0.q", "0.v"])
        {'target_modules': ['q', 'v']}
        >>> as_trained([{"target_modules": ".*text.*q"}, {"target_modules": ["v"]}], ["text.0.q", "text.0.v"])
        {'target_modules': '(?:.*text.*q)|(?:(?:.*\\\\.)?(?:v))'}
    """
    said = []
    for config in configs:
        fields = {key: _plain(config.get(key)) for key in _FIELDS if config.get(key) not in (None, [], "")}
        if "target_modules" in fields and fields not in said:
            said.append(fields)
    if len(said) > 1:  # "all-linear" stands for itself alone, so that its modules are named
        said = [fields for fields in said if fields["target_modules"] != "all-linear"]
    patterns = [target_pattern(fields) for fields in said]
    left = sorted(m for m in modules if not any(re.fullmatch(pattern, m) for pattern in patterns))
    if all(set(fields) == {"target_modules"} and isinstance(fields["target_modules"], list) for fields in said):
        return {"target_modules": sorted({name for fields in said for name in fields["target_modules"]} | {*left})}
    if len(said) == 1 and not left:
        return said[0]
    return {"target_modules": "|".join(f"(?:{pattern})" for pattern in [*patterns, *map(re.escape, left)])}


def target_pattern(config: Mapping[str, Any]) -> str:
    """A regular expression of the names that PEFT takes for targets by a configuration.

    Example:
        >>> bool(re.fullmatch(target_pattern({"target_modules": ["q"], "layers_to_transform": 1}), "m.layers.1.q"))
        True
        >>> bool(re.fullmatch(target_pattern({"target_modules": ["q"], "exclude_modules": ["1.q"]}), "m.layers.1.q"))
        False
    """
    targets, excluded = config["target_modules"], config.get("exclude_modules")
    if isinstance(targets, str):
        found = ".*" if targets == "all-linear" else targets
    else:
        names = "|".join(re.escape(name) for name in sorted(targets))
        layers = _layers(config)
        found = rf"(?:(?:{names})|{layers}.*\.(?:{names}))" if layers else rf"(?:.*\.)?(?:{names})"
    if not excluded:
        return found
    left = excluded if isinstance(excluded, str) else rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(excluded)))})"
    return rf"(?!(?:{left})$)(?:{found})"


def _layers(config: Mapping[str, Any]) -> str:
    """The condition that `layers_to_transform` puts on a name: the number of its first layer is one of them."""
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None:
        return ""
    numbers = "|".join(str(number) for number in ([layers] if isinstance(layers, int) else layers))
    if not pattern:
        return rf"(?=[^.]*\.[^.]*\.(?:(?!\d+\.)[^.]*\.)*(?:{numbers})\.)"
    names = pattern if isinstance(pattern, str) else "|".join(pattern)
    return rf"(?=(?:.*?\.)?(?:{names})\.(?:{numbers})\.)"


def _in_their_words(experts: Sequence[Adapter], parameters: list[str], problem: Problem) -> list[str]:
    """`target_parameters` in the adapters' own words, where these mean the same parameters.

    PEFT puts adapters of parameters on one model only if their `target_parameters` are the same, word for word.
    """
    spelled = {tuple(sorted(set(e.config.get("target_parameters") or ()))) for e in experts} - {()}
    if not parameters or len(spelled) != 1 or problem.source is None:
        return parameters
    [words] = spelled
    names = {stem_of(tensor) for tensor in problem.source.shapes} | set(problem.source.shapes)

    def means(entries: Sequence[str]) -> set[str]:
        return {name for name in names if any(name == word or name.endswith(f".{word}") for word in entries)}

    return list(words) if means(words) == means(parameters) else parameters


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset, list, tuple)) else value
