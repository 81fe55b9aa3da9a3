"""`NAME=VALUE` options."""

from __future__ import annotations

from samerge.errors import OptionError


def pairs(texts: list[str] | None) -> dict[str, str] | None:
    """`NAME=VALUE` texts as a mapping; None for none.

    Raises:
        OptionError: one of them has no name or no value, or a name stands there twice.

    Example:
        >>> pairs(["mu=0.1", "majority-sign-method=total"])
        {'mu': '0.1', 'majority_sign_method': 'total'}
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not name or not equals or not value or name in found:
            raise OptionError(f"--method-option {text!r}: it must be NAME=VALUE, each name once, as in mu=0.1")
        found[name] = value
    return found or None
