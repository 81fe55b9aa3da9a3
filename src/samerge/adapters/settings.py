"""What each field of an adapter's configuration may hold; checked once, where the configuration is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samerge.adapters.patterns import PatternError, compiled, is_plain
from samerge.errors import AdapterError
from samerge.weights.fields import FLAG, NUMBER, TEXT, Kind, check_fields, either, list_of, table_of, whole
from samerge.weights.hub import CONFIG_NAME
from samerge.weights.untrusted import Origin

#: The largest rank, more than any layer's width.
MOST_RANK = 2**17
#: Entries of a list that is compared with every module's name.
MOST_ENTRIES = 2_000
#: Pairs of `layer_replication`, and layers that they make together.
MOST_PAIRS, MOST_LAYERS = 1_000, 10_000

_RANK, _ROW = whole(1, MOST_RANK), whole(0, 2**40)
_NAMES = list_of(TEXT, MOST_ENTRIES)


def _are_pairs(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) <= MOST_PAIRS
        and all(_is_pair(pair) for pair in value)
        and sum(stop - start for start, stop in value) <= MOST_LAYERS
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_ROW.fits, value)) and value[0] < value[1]


_PAIRS = Kind(
    f"a list of at most {MOST_PAIRS} pairs [start, stop], start < stop, of at most {MOST_LAYERS} layers together",
    _are_pairs,
)

KINDS: Mapping[str, Kind] = {
    "peft_type": TEXT,
    "peft_version": TEXT,
    "base_model_name_or_path": TEXT,
    "revision": TEXT,
    "task_type": TEXT,
    "r": _RANK,
    "lora_alpha": NUMBER,
    "rank_pattern": table_of(_RANK),
    "alpha_pattern": table_of(NUMBER),
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "lora_bias": FLAG,
    "fan_in_fan_out": FLAG,
    "bias": Kind("'none', 'all' or 'lora_only'", ("none", "all", "lora_only").__contains__),
    "init_lora_weights": either(FLAG, TEXT),
    "target_modules": either(TEXT, list_of(TEXT)),
    "exclude_modules": either(TEXT, list_of(TEXT)),
    "target_parameters": _NAMES,
    "modules_to_save": _NAMES,
    "layers_to_transform": either(_ROW, list_of(_ROW)),
    "layers_pattern": either(TEXT, list_of(TEXT)),
    "layer_replication": _PAIRS,
    "trainable_token_indices": either(list_of(_ROW), table_of(list_of(_ROW))),
}


def check_settings(name: str, config: Mapping[str, Any]) -> None:
    """Check that every field which means something holds a value of its kind, within bounds.

    Args:
        name: of the adapter, for errors.
        config: its configuration.

    Raises:
        AdapterError: a field does not; names it, what it holds and what it may hold.
    """
    origin = Origin(f"reading adapter {name!r}", AdapterError)
    check_fields(config, KINDS, CONFIG_NAME, origin, needed=("r", "lora_alpha"))
    given = config.get("target_modules")
    expressions = [given] if isinstance(given, str) else []
    for field in ("rank_pattern", "alpha_pattern"):
        expressions += [key for key in config.get(field) or () if not is_plain(key)]
    if len(expressions) > MOST_ENTRIES:
        raise origin.refusal(
            f"{CONFIG_NAME} has {len(expressions)} patterns, more than the {MOST_ENTRIES} that are read"
        )
    for expression in expressions:
        try:
            compiled(expression)
        except PatternError as error:
            raise origin.refusal(f"{CONFIG_NAME}: {error}; name the modules instead") from error


def readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """What can be told of a configuration that is refused: its fields that hold what they may, without patterns."""
    kept = {key: value for key, value in config.items() if key not in KINDS or KINDS[key].fits(value)}
    for field in ("rank_pattern", "alpha_pattern"):
        kept[field] = {key: value for key, value in (kept.get(field) or {}).items() if is_plain(key)}
    if isinstance(kept.get("target_modules"), str):
        del kept["target_modules"]
    return kept
