"""`--search` and `--option` of `samerge tune`, from text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from samerge.cli.shared_options import number_or_word
from samerge.errors import OptionError

_WORDS = {"true": True, "false": False, "none": None}

#: Options that have a value of the name "none", which is another thing than not to give them: a recipe sets them.
_HAVE_NONE = ("balance", "selection")


def search_space(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """`NAME=LOW:HIGH`, `NAME=LOW:HIGH:log`, `scaling=auto:LOW:HIGH` or `NAME=A,B,C` as `samerge.tune` takes them.

    None for none.

    Raises:
        OptionError: one of them is neither, or a name stands there twice.

    Example:
        >>> search_space(["scaling=0.1:2", "method=tsv,linear", "rank=4:32:log"])
        {'scaling': (0.1, 2), 'method': ['tsv', 'linear'], 'rank': (4, 32, 'log')}
    """
    if not texts:
        return None
    found: dict[str, Any] = {}
    for text in texts:
        name, given = _pair(text, "--search", "NAME=LOW:HIGH or NAME=A,B,C", found)
        parts = given.split(":")
        if parts[0] == "auto" and len(parts) == 3:
            found[name] = (f"auto:{parts[1]}", f"auto:{parts[2]}")
        elif "," not in given and len(parts) > 1:
            found[name] = tuple(read(part, name) for part in parts)
        else:
            found[name] = [read(part, name) for part in given.split(",")]
    return found


def fixed_options(texts: Sequence[str] | None, names: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` as keyword arguments of `merge`; names that it does not have are the method's own.

    Raises:
        OptionError: one of them is not NAME=VALUE, a name stands there twice, or has an argument of its own.
    """
    from samerge.methods.weighing import WEIGHT_RULES

    found: dict[str, Any] = {}
    for text in texts or ():
        name, given = _pair(text, "--option", "NAME=VALUE", found)
        if name == "method" or (name == "weights" and given not in WEIGHT_RULES):
            way = "give --method" if name == "method" else f"write them behind the adapters, as in {names[0]}:0.8"
            raise OptionError(f"--option {text!r}: {way}")
        found[name] = read(given, name)
    if not found:
        return found
    from samerge.merging.tuning.dimensions import kinds

    known = kinds()
    own = {name: value for name, value in found.items() if name not in known}
    options = {name: value for name, value in found.items() if name in known}
    return options | ({"method_options": own} if own else {})


def read(text: str, name: str) -> Any:
    """A value of an option: a whole number, a number, true, false, none, or the word as it is.

    Example:
        >>> read("8", "rank"), read("0.5", "mu"), read("true", "residual"), read("adaptive:0.2", "density")
        (8, 0.5, True, 'adaptive:0.2')
        >>> read("none", "svd_rank"), read("none", "balance")
        (None, 'none')
    """
    text = text.strip()
    if text.lower() in _WORDS and not (text == "none" and name in _HAVE_NONE):
        return _WORDS[text.lower()]
    try:
        return int(text)
    except ValueError:
        number = number_or_word(text)
    return number if isinstance(number, float) and math.isfinite(number) else text  # weights=nan is a word


def _pair(text: str, option: str, form: str, found: dict[str, Any]) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    # the name of an adapter may have hyphens, that of an option is written with either
    name = name if name.startswith("weights.") else name.replace("-", "_")
    if not name or not equals or not value or name in found:
        raise OptionError(f"{option} {text!r}: it must be {form}, each name once")
    return name, value
