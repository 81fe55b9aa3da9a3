"""PEFT's LoHa and LoKr, read exactly as LoRA of the rank that takes (see `products.py`); the scale is alpha / r."""

from __future__ import annotations

import re
from collections import Counter

from samerge.adapters.config import pattern_value
from samerge.adapters.formats.format import Format, Place
from samerge.adapters.formats.pairs import adapter, grouped, kind_config, module_of
from samerge.adapters.formats.products import kind_of, notes_of, product, shapes_of
from samerge.adapters.model import AdaptedModule, Adapter
from samerge.adapters.names import plain_name
from samerge.adapters.patterns import PatternError, allowance
from samerge.adapters.settings import KINDS
from samerge.weights.fields import NUMBER
from samerge.weights.hub import CONFIG_NAME

TITLE = "LoHa or LoKr of PEFT"
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))")


def reads(place: Place) -> bool:
    """Whether the configuration says so."""
    return place.config is not None and place.config.get("peft_type") in ("LOHA", "LOKR")


def open_folder(place: Place) -> Adapter:
    """The adapter in a folder.

    Raises:
        AdapterError: a file is broken, or holds more than the products.
    """
    origin = place.origin(TITLE)
    kinds = {"alpha": NUMBER, "r": KINDS["r"], "rank_pattern": KINDS["rank_pattern"]}
    config = kind_config(place, {**kinds, "alpha_pattern": KINDS["alpha_pattern"]}, origin, needed=("alpha", "r"))
    modules: dict[str, AdaptedModule] = {}
    products: Counter[str] = Counter()
    try:
        with allowance():
            for module, parts in grouped(place, _KEY, origin, plain_name).items():
                kind = kind_of(shapes_of(place, parts))
                if kind is None:
                    raise origin.refusal(f"module {module!r} has {sorted(parts)}, which make no product")
                stored = product(place, module, parts, origin)
                rank = pattern_value(config.get("rank_pattern"), module, config["r"])
                scale = float(pattern_value(config.get("alpha_pattern"), module, config["alpha"])) / rank
                modules.update(module_of(place, module, stored, scale))
                products[kind] += 1
    except PatternError as error:
        raise origin.refusal(f"{CONFIG_NAME}: {error}") from error
    kept = {key: value for key, value in config.items() if key not in ("alpha", "rank_pattern", "alpha_pattern")}
    return adapter(place, FORMAT.family, modules, kept, notes_of(place.name, modules, products))


FORMAT = Format("lycoris", TITLE, reads, open_folder, family="peft")
