"""A configuration of mergekit, where it merges LoRA adapters of one base, as a recipe that makes the same merge.

What has no counterpart is refused by name. What differs a little (random numbers, the rank) is told.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samerge.cli.named_adapter import default_name
from samerge.errors import OptionError
from samerge.options.kinds import check_number, flag
from samerge.options.option import meant

#: mergekit's own default of epsilon and gamma.
_EPSILON, _GAMMA = 0.15, 0.01
_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")
#: Of an adapter there is nothing to do about these.
_TOKENS = ("tokenizer_source", "tokenizer", "chat_template")


@dataclass(frozen=True)
class _Method:
    """A method of mergekit.

    Args:
        own: samerge's name for it.
        normalize: mergekit's default: whether it divides by the sum of the weights.
        elects: whether it lets the adapters vote on signs.
        draws: whether it drops elements at random, and rescales what stays.
        options: that always go with it.
    """

    own: str
    normalize: bool = False
    elects: bool = False
    draws: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


_METHODS: Mapping[str, _Method] = {
    "linear": _Method("linear", normalize=True),
    "task_arithmetic": _Method("linear"),
    "ties": _Method("ties", normalize=True, elects=True, options={"trim": "layer"}),
    "dare_linear": _Method("dare", draws=True),
    "dare_ties": _Method("dare-ties", elects=True, draws=True),
    "della": _Method("della", normalize=True, elects=True, draws=True),
    "della_linear": _Method("della", draws=True, options={"elect": False}),
    "breadcrumbs": _Method("breadcrumbs"),
}


@dataclass(frozen=True)
class _Model:
    """One entry of `models`."""

    base: str
    adapter: str | None
    parameters: Mapping[str, Any]

    @property
    def told(self) -> str:
        return self.base if self.adapter is None else f"{self.base}+{self.adapter}"


def is_mergekit(table: Mapping[Any, Any]) -> bool:
    """Whether a YAML file is a configuration of mergekit and not a recipe."""
    return "merge_method" in table and "adapters" not in table


def as_recipe(table: Mapping[Any, Any], doing: str) -> tuple[dict[str, Any], list[str]]:
    """The recipe that makes the same merge, and what differs all the same.

    Args:
        table: the configuration.
        doing: how messages begin.

    Raises:
        OptionError: samerge has no such merge; says of what.
    """
    doing = f"{doing}, a configuration of mergekit"
    name = str(table["merge_method"])
    if name not in _METHODS:
        raise OptionError(
            f"{doing}: its merge_method is {name!r}, which samerge has no counterpart of{meant(name, _METHODS)} It "
            f"reads {', '.join(_METHODS)}"
        )
    for key in table:
        if key in ("slices", "modules"):
            raise OptionError(
                f"{doing}: it has {key!r}, pieces of models put together; a merge of adapters takes them whole: list "
                f"them under 'models'"
            )
        if key not in (*_KEYS, *_TOKENS):
            raise OptionError(f"{doing}: the key {key!r} is not known{meant(str(key), _KEYS)}")
    notes = [f"{key} is left out: an adapter has no tokenizer" for key in _TOKENS if table.get(key) is not None]
    method = _METHODS[name]
    shared = _mapping(table.get("parameters"), f"{doing}: parameters")
    models = _models(table, doing)
    base, adapters = _one_base(models, table, name, doing)
    models = models if name == "linear" else adapters  # the base counts in a mean of models, not among task vectors
    weights = _weights(models, shared, doing)
    recipe: dict[str, Any] = {"base": base, "method": method.own, **method.options}
    normalize = _flag(shared, "normalize", method.normalize, doing)
    strength = _number(shared.get("lambda", 1.0), f"{doing}: lambda")
    if method.elects:
        recipe["aggregate"] = "mean" if normalize else "sum"
    recipe |= _of_method(name, method, adapters, shared, doing)
    total = 1.0
    if normalize or name == "linear":
        total = _divisor(method, weights, normalize, doing)
    recipe["scaling"] = strength
    recipe["adapters"], modules = _weighted(models, weights, total, doing)
    if modules:
        recipe["modules"] = modules
    dtype = table.get("out_dtype") or table.get("dtype")
    if dtype is not None:
        recipe["dtype"] = dtype
    if method.draws:
        notes.append(
            "mergekit drops other elements at random, and rescales by norms in place of the share that is kept"
        )
    if method.own != "linear":
        notes.append(
            "mergekit writes whole weights; this is an adapter, cut to the rank of its largest source, where a recipe "
            "does not say another rank"
        )
    return recipe, notes


def _models(table: Mapping[Any, Any], doing: str) -> list[_Model]:
    entries = table.get("models")
    if not isinstance(entries, list) or not entries:
        raise OptionError(f"{doing}: models is {entries!r}; it must be a list of models")
    found = []
    for number, entry in enumerate(entries, 1):
        entry = _mapping(entry, f"{doing}, model {number}")
        for key in entry:
            if key not in ("model", "parameters"):
                raise OptionError(f"{doing}, model {number}: the key {key!r} is not known{meant(str(key), ['model'])}")
        base, adapter = _reference(entry.get("model"), f"{doing}, model {number}")
        found.append(_Model(base, adapter, _mapping(entry.get("parameters"), f"{doing}, model {number}: parameters")))
    return found


def _reference(value: Any, doing: str) -> tuple[str, str | None]:
    """The base and the adapter of `BASE+ADAPTER`, or of the same as a mapping."""
    if isinstance(value, Mapping):
        if set(value) - {"model", "lora"}:
            raise OptionError(f"{doing}: it is {value!r}; it may have model and lora")
        lora = value.get("lora")
        return _path(value.get("model"), doing), None if lora is None else _path(lora, doing)
    if isinstance(value, str) and value.count("+") < 2:
        base, plus, adapter = value.partition("+")
        if base and bool(plus) == bool(adapter):
            return base, adapter or None
    raise OptionError(f"{doing}: it is {value!r}; it must be a model, or BASE+ADAPTER")


def _path(value: Any, doing: str) -> str:
    if isinstance(value, Mapping) and set(value) <= {"path", "revision"}:
        revision = value.get("revision")
        value = f"{value.get('path', '')}{f'@{revision}' if revision else ''}"
    if not isinstance(value, str) or not value:
        raise OptionError(f"{doing}: {value!r} names no folder and no repository")
    return value


def _one_base(models: Sequence[_Model], table: Mapping[Any, Any], name: str, doing: str) -> tuple[str, list[_Model]]:
    """The base that all adapters have, and the models that have one."""
    adapters = [model for model in models if model.adapter is not None]
    given = table.get("base_model")
    base, on_top = _reference(given, f"{doing}: base_model") if given is not None else (None, None)
    if on_top is not None:
        raise OptionError(f"{doing}: base_model is {given!r}; a base with an adapter in it has to be baked first")
    if base is None and name != "linear":
        raise OptionError(f"{doing}: it has no base_model, which {name} needs")
    base = base or (adapters or models)[0].base
    for model in models:
        if model.adapter is None and model.base != base:
            raise OptionError(
                f"{doing}: {model.base} is a whole model; samerge merges adapters: write BASE+ADAPTER, or make an "
                f"adapter of it first (samerge extract --base {base} {model.base}). Whole checkpoints are merged by "
                f"samerge full, element by element"
            )
        if model.base != base:
            raise OptionError(f"{doing}: {model.told} is an adapter of {model.base}, the base is {base}; they need one")
    if not adapters:
        raise OptionError(f"{doing}: it has no adapter; write models as BASE+ADAPTER")
    return base, adapters


#: Weights by pattern, the first that matches first; None matches all.
_Rules = list[tuple[str | None, float]]


def _weights(models: Sequence[_Model], shared: Mapping[str, Any], doing: str) -> list[_Rules]:
    """Of every model."""
    found: list[_Rules] = []
    for model in models:
        value = model.parameters.get("weight", shared.get("weight"))
        if value is None:
            raise OptionError(f"{doing}: {model.told} has no weight, which mergekit needs, too")
        found.append(_rules(value, f"{doing}: the weight of {model.told}"))
    return found


def _rules(value: Any, doing: str) -> _Rules:
    if not isinstance(value, list):
        return [(None, _number(value, doing))]
    rules: _Rules = []
    for one in value:
        if not isinstance(one, Mapping) or set(one) - {"value", "filter"}:
            raise OptionError(
                f"{doing} is {value!r}, a gradient over the layers; give one number, or weights by module: modules, in "
                f"a recipe"
            )
        pattern = one.get("filter")
        rules.append((None if pattern in (None, "*") else str(pattern), _number(one.get("value"), doing)))
        if rules[-1][0] is None:
            return rules
    raise OptionError(f"{doing} is {value!r}, which says nothing of the other modules; end it with {{value: NUMBER}}")


def _divisor(method: _Method, weights: Sequence[_Rules], normalize: bool, doing: str) -> float:
    """What all weights are divided by."""
    if any(len(rules) > 1 for rules in weights):
        raise OptionError(f"{doing}: weights by filter and normalize together; give normalize: false, or plain weights")
    plain = [rules[0][1] for rules in weights]
    total = math.fsum(plain)
    if method.elects:
        given = {weight for weight in plain if weight}
        if len(given) > 1:
            raise OptionError(
                f"{doing}: it has other weights for other adapters, and normalize, {method.own}'s default in mergekit, "
                f"which divides each value by the weights that agree on it; samerge divides by their number. Give "
                f"equal weights, or normalize: false, where both do the same"
            )
        return given.pop() if given else 1.0
    if not normalize:
        if abs(total - 1) > 1e-9:
            raise OptionError(
                f"{doing}: linear with normalize: false and weights that sum to {total:g}: that scales the base, too, "
                f"which no adapter can. For a sum of the adapters' updates take task_arithmetic"
            )
        return 1.0
    return total if abs(total) >= 1e-8 else 1.0  # as mergekit has it


def _of_method(
    name: str, method: _Method, adapters: Sequence[_Model], shared: Mapping[str, Any], doing: str
) -> dict[str, Any]:
    """The options of its own that the method needs; every parameter is looked at."""
    known = {"weight", "normalize"} if name == "linear" else {"weight", "density", "normalize", "lambda", "int8_mask"}
    known |= {"rescale"} if name != "linear" else set()
    known |= {"gamma"} if name == "breadcrumbs" else set()
    known |= {"epsilon"} if method.own == "della" else set()
    for place in (shared, *(model.parameters for model in adapters)):
        for key in place:
            if key not in known:
                raise OptionError(f"{doing}: {name} has no parameter {key!r}{meant(str(key), known)}")
    if name != "linear" and _flag(shared, "rescale", method.draws, doing) != method.draws:
        does = "always" if method.draws else "never"
        raise OptionError(f"{doing}: rescale is {shared['rescale']!r}; samerge's {method.own} {does} rescales")
    if method.own == "linear":
        return {}
    found = {"density": _same("density", 1.0, adapters, shared, doing)}
    if not 0 < found["density"] <= 1:
        raise OptionError(f"{doing}: density is {found['density']:g}; it must lie in (0, 1]")
    if name == "breadcrumbs":
        found["top"] = _same("gamma", _GAMMA, adapters, shared, doing) if found["density"] < 1 else 0.0
        found["top"] = min(found["top"], 1 - found["density"])  # as mergekit has it: the density wins
    if method.own == "della":
        found["epsilon"] = _same("epsilon", _EPSILON, adapters, shared, doing) if found["density"] < 1 else 0.0
    return found


def _same(key: str, default: float, adapters: Sequence[_Model], shared: Mapping[str, Any], doing: str) -> float:
    """A parameter that must be the same for all adapters."""
    given = [model.parameters.get(key, shared.get(key, default)) for model in adapters]
    if any(value != given[0] for value in given):
        raise OptionError(f"{doing}: {key} is {', '.join(map(str, given))}; samerge has one {key} for all adapters")
    if isinstance(given[0], list):
        raise OptionError(f"{doing}: {key} is {given[0]!r}; samerge has one number for all layers")
    return _number(given[0], f"{doing}: {key}")


def _weighted(
    models: Sequence[_Model], weights: Sequence[_Rules], total: float, doing: str
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """The adapters with a weight each, and their weights by module where they have some.

    mergekit takes the first filter that is found in a name, `modules` the last pattern that matches.
    """
    adapters: list[dict[str, Any]] = []
    by_pattern: dict[str, dict[str, float]] = {}
    order: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for model, rules in zip(models, weights, strict=True):
        if model.adapter is None:
            continue
        name = default_name(model.adapter)
        taken = {one["name"] for one in adapters}
        name = next(one for one in (name, *(f"{name}-{n}" for n in range(2, 1000))) if one not in taken)
        apart = len(rules) > 1
        adapters.append({"name": name, "source": model.adapter, "weight": 1.0 if apart else rules[0][1] / total})
        patterns = ["*" if text is None else f"*{text}*" for text, _ in reversed(rules)] if apart else []
        for before, pattern in zip([None, *patterns], patterns, strict=False):
            order.add(pattern, *([] if before is None else [before]))
        for pattern, (_, weight) in zip(patterns, reversed(rules), strict=False):
            by_pattern.setdefault(pattern, {})[name] = weight
    try:
        return adapters, {pattern: by_pattern[pattern] for pattern in order.static_order()}
    except graphlib.CycleError:
        raise OptionError(
            f"{doing}: its adapters have filters of weights in different orders; samerge has one order for all"
        ) from None


def _mapping(value: Any, doing: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError(f"{doing}: it is {value!r}; it must be a mapping")
    return value


def _number(value: Any, doing: str) -> float:
    try:
        return check_number("it", value)
    except OptionError:
        raise OptionError(f"{doing}: it is {value!r}; samerge needs a number there") from None


def _flag(shared: Mapping[str, Any], key: str, default: bool, doing: str) -> bool:
    try:
        return bool(flag().read(key, shared.get(key, default)))
    except OptionError as error:
        raise OptionError(f"{doing}: {error}") from error
