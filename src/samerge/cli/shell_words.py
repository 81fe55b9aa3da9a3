"""Messages of the library in the shell's words: `rank=8` is `--rank 8` there, of the command that has it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

#: `name=value`, but not within a path, a way of `compare` or another word.
_PYTHON = r"(?<![\w'\":./=-])({names})=('[^']*'|\"[^\"]*\"|[^\s,;()'\"]*[^\s,;()'\".:?])?"

#: Options whose name in a shell is another one (`Kind.flag`; their table is not loaded for a message).
_FLAGS = {"modules": "module-weight"}

#: Weights by module: `modules={'*.mlp.*': 0}`, `modules['*.mlp.*']['math']='x'`, and the option in a sentence.
_RULES = re.compile(r"(?<![\w'\":./=-])modules=\{((?:'[^']*': [^,{}]+(?:, )?)+)\}")
_RULE = re.compile(r"'([^']*)': ([^,{}]+)")
_PLACE = re.compile(r"(?<![\w'\":./=-])modules\['([^']*)'\](?:\['([^']*)'\])?=('[^']*'|[^\s,;]*)")
_SUBJECT = re.compile(r"(?<![\w'\":./=-])modules (?=(has the pattern|names the adapter|gives every)\b)")

#: Values beside one that is written as an option, and what a value leaves to the user: `'take:<adapter>'`.
_WORDS = re.compile(r"(?<!adapter )'(average|update|drop|auto|exact(?::\d+)?)'")
_HOLES = re.compile(r"'?\b(take|exact|auto):<(\w+)>'?")

#: What an option is called that the command at hand has not got.
_OF_MERGE = " of samerge merge"

#: The parameters of the command that runs.
_PARAMETERS: ContextVar[frozenset[str]] = ContextVar("parameters", default=frozenset())


@contextlib.contextmanager
def speaking(parameters: Iterable[str]) -> Iterator[None]:
    """While a command with these parameters runs, `said` speaks of its options."""
    before = _PARAMETERS.set(frozenset(parameters))
    try:
        yield
    finally:
        _PARAMETERS.reset(before)


def said(message: str) -> str:
    """A message of the library in the words of the command that runs.

    What the command has is written as an option of the shell; what only a merge has, as one of `samerge merge`. A
    recipe file has the library's own words, and so has a way of `compare`, which `--method` names.
    """
    own = _PARAMETERS.get()
    if "recipe" in own:
        return in_shell_words(message, own)
    if "ways" in own:
        return in_shell_words(message, own | {"method"})
    merges = option_names() | {"base", "method", "format"}
    if "ctx" in own or "samerge merge" in message:  # the first takes the options of methods, too
        return in_shell_words(message, own | merges)
    return in_shell_words(message, own, merges - own)


def in_shell_words(message: str, names: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """A message with the options in it as they are written in a shell.

    Args:
        message: as the library raised it.
        names: of options, as in Python.
        elsewhere: names of options that only `samerge merge` has.

    Example:
        >>> in_shell_words("svd_rank='x' must be a whole number; give base: a folder", ["svd_rank", "base"])
        '--svd-rank x must be a whole number; give --base: a folder'
        >>> in_shell_words("give base=, or dora='exact'", ["dora"], ["base"])
        'give --base of samerge merge, or --dora exact'
    """
    message = _written(message, set(names))
    return _written(message, set(elsewhere), _OF_MERGE) if elsewhere else message


def _written(message: str, names: set[str], behind: str = "") -> str:
    if "modules" in names:
        message = _RULES.sub(lambda found: " ".join(_weight(*rule) for rule in _RULE.findall(found[1])), message)
        message = _PLACE.sub(lambda found: _weight(found[1], found[3].strip("'"), found[2] or ""), message)
        message = _SUBJECT.sub("--module-weight ", message)
    words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    if not words:
        return message

    def written(found: re.Match[str]) -> str:
        value = (found[2] or "").strip("'\"")
        flag = "--" + _FLAGS.get(found[1], found[1].replace("_", "-"))
        if not value or value == "True":
            return flag + behind
        return (f"{flag} {value!r}" if " " in value else f"{flag} {value}") + behind

    message = re.sub(_PYTHON.format(names=words), written, message)
    message = _WORDS.sub(r"\1", message)
    message = _HOLES.sub(lambda found: f"{found[1]}:{found[2].upper()}", message)
    return re.sub(r"\bgive base\b", f"give --base{behind}", message) if "base" in names else message


def _weight(pattern: str, weight: str, adapter: str = "") -> str:
    return f"--module-weight '{pattern}={f'{adapter}:' if adapter else ''}{weight}'"


def option_names() -> set[str]:
    """All options of merges; none before the library was loaded, whose messages name them."""
    if "samerge.merging" not in sys.modules:
        return set()
    from samerge.methods.keywords import LiveKeywords, MergeKeywords

    return {name for kind in (LiveKeywords, MergeKeywords) for name in kind.__annotations__}
