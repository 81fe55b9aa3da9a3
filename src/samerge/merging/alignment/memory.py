"""A base model as transformers has it in memory: the names of its weights there, and which of them are one weight.

Since transformers 5 (and for some models since 4.52) many models are named otherwise in memory than in their
checkpoints. Adapters are named after the model in memory of the release that they were trained with, and PEFT loads
them onto the model in memory of the release that is installed. Both are translated by transformers' own table, for
which the model is built without any weights (on the meta device).
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samerge.adapters.extras import INSIDE
from samerge.adapters.names import plain_name
from samerge.weights import WeightSource, unwrap
from samerge.weights.harmless import harmless

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """What transformers makes of a base model's names.

    Args:
        names: name in memory -> name in the checkpoint. Tensors that are no parameter in memory, such as the experts of
            a stack, keep their names.
        tied: names in memory of parameters that are another parameter -> the name of that.
        prefix: what a model with a head calls the model without.
        renamed: from a parameter's name in any release's spelling to its name in memory, as far as transformers knows.
    """

    names: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    renamed: Callable[[str], str] = lambda name: name


def may_be_renamed(source: WeightSource) -> bool:
    """Whether a model's names in memory may differ from those in its checkpoint.

    Transformers' table of renamings is searched as text: importing it takes seconds, and most language models are not
    in it.
    """
    config = source.config
    if any(isinstance(value, Mapping) and "model_type" in value for value in config.values()):
        return True  # a model of several models
    text = _table()
    kind, classes = str(config.get("model_type")), config.get("architectures") or []
    stems = {re.split(r"For|Model|LMHead", str(name))[0] for name in classes} - {""}
    return f'"{kind}"' in text or any(re.search(rf'"{re.escape(stem)}(?:[A-Z]\w*)?"', text) for stem in stems)


def in_memory(source: WeightSource) -> Memory | None:
    """The base as transformers has it in memory.

    Returns:
        None where transformers does not know the model, or cannot build it.
    """
    try:
        model = _built(source)
        if model is None:
            return None
        known = dict(model.state_dict(keep_vars=True))
        renamed = _renaming(model, known)
        names: dict[str, str] = {}
        for tensor in sorted(source.shapes):
            name = renamed(tensor)
            names[name if name in known and name not in source.shapes.keys() - {tensor} else tensor] = tensor
        if len(names) != len(source.shapes):
            return None
        return Memory(names, _tied(model), str(getattr(model, "base_model_prefix", "") or ""), renamed)
    except Exception as error:  # a model that needs code of its own, a configuration of another release
        logger.debug("transformers could not build %s without weights: %s", source.name, error)
        return None


def of_live(model: nn.Module, source: WeightSource) -> Memory:
    """A live model as it is: its own names, with transformers' knowledge of older ones."""
    inner: Any = unwrap(model)
    names = {name: name for name in source.shapes}
    tied = {alias: name for alias, name in _tied(inner, names).items() if alias not in names}
    prefix = str(getattr(inner, "base_model_prefix", "") or "")
    try:
        return Memory(names, tied, prefix, _renaming(inner, names))
    except Exception as error:  # no model of transformers
        logger.debug("transformers has no table for %s: %s", type(inner).__name__, error)
        return Memory(names, tied, prefix)


def _table() -> str:
    found = importlib.util.find_spec("transformers")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    files = [Path(place) / "conversion_mapping.py" for place in places]
    return "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _built(source: WeightSource) -> Any:
    """The model on the meta device, with nothing of its configuration that runs or fetches anything."""
    import transformers

    config = harmless(source.config, len(source.shapes))
    if config is None:
        return None
    kind: Any = next(
        (getattr(transformers, name) for name in config.get("architectures") or [] if hasattr(transformers, name)), None
    )
    if kind is None:
        kinds = transformers.CONFIG_MAPPING
        if config.get("model_type") not in kinds:
            return None
        kind = next(
            (
                table[kinds[config["model_type"]]]
                for table in (
                    transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
                    transformers.AutoModelForImageTextToText._model_mapping,
                    transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
                    transformers.MODEL_MAPPING,
                )
                if kinds[config["model_type"]] in table
            ),
            None,
        )
    if kind is None:
        return None
    settings = kind.config_class.from_dict(config)
    settings._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = kind(settings)
        model.tie_weights()
    return model


def _renaming(model: Any, known: Mapping[str, Any]) -> Callable[[str], str]:
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # before transformers 5, a mapping of regular expressions in the class
        rules = getattr(model, "_checkpoint_conversion_mapping", None) or {}
        return lambda name: _by_class(name, rules, prefix, known)
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]

    def renamed(name: str) -> str:
        return str(rename_source_key(name, renamings, [], prefix, known)[0])

    return renamed


def _by_class(name: str, rules: Mapping[str, str], prefix: str, known: Iterable[str]) -> str:
    for pattern, replacement in rules.items():
        name, changed = re.subn(pattern, replacement.lstrip("^"), name)
        if changed:
            break
    if name not in known and f"{prefix}.{name}" in known:
        return f"{prefix}.{name}"
    return name.removeprefix(f"{prefix}.") if name not in known and name.removeprefix(f"{prefix}.") in known else name


def _tied(model: nn.Module, known: Container[str] | None = None) -> dict[str, str]:
    """Names of parameters that are another parameter of the model -> the name of that, which is among the known."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = ".".join(part for part in plain_name(name).split(".") if part not in INSIDE)
        if id(parameter) in first and first[id(parameter)] != plain:
            tied[plain] = first[id(parameter)]
        elif known is None or plain in known:
            first[id(parameter)] = plain
    return tied
