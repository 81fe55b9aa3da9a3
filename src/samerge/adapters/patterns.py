"""The regular expressions of an adapter's configuration, matched in bounded time.

Python's `re` tries every way through a pattern, of which `(a+)+$` has more than the universe has seconds. Here a place
in the pattern is tried once at each place in the name, so that the time is at most the product of both lengths. That
gives the same answer, since nothing is asked but whether a name matches; what would need more (back-references, atomic
groups, inline flags) is refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

try:
    from re import _parser as parser  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # Python 3.10
    import sre_parse as parser  # type: ignore[no-redef, unused-ignore]

#: Characters of a pattern, and steps of its program: counted repetitions are written out.
MOST_LETTERS = 20_000
MOST_STEPS = 20_000
#: Steps that all patterns of an adapter may take over all its modules: some seconds.
ALLOWANCE = 5_000_000

_PLAIN = re.compile(r"[\w.\-]*", re.ASCII)
_left: ContextVar[list[int] | None] = ContextVar("steps that are left", default=None)

#: A step of a program: what it does, with what, and the next step.
_Step = tuple[str, Any, int]


class PatternError(ValueError):
    """A pattern is none, or cannot be matched within the bounds."""


@contextlib.contextmanager
def allowance(steps: int = ALLOWANCE) -> Iterator[None]:
    """Let all matching inside the block together take so many steps."""
    token = _left.set([steps])
    try:
        yield
    finally:
        _left.reset(token)


def spend(steps: int) -> None:
    """Take steps from the allowance.

    Raises:
        PatternError: it is used up.
    """
    left = _left.get()
    if left is not None:
        left[0] -= steps
        if left[0] < 0:
            raise PatternError("its patterns take too many steps to match; name the modules instead")


def is_plain(pattern: str) -> bool:
    """Whether a pattern is a module's name, or the end of one, and nothing more."""
    return _PLAIN.fullmatch(pattern) is not None


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Pattern:
    """A pattern, ready to match.

    Raises:
        PatternError: it is no regular expression, too long, or needs what is not matched here.
    """
    return Pattern(pattern)


class Pattern:
    """A regular expression that is matched in bounded time.

    Args:
        text: the expression, in Python's syntax.

    Raises:
        PatternError: it is no regular expression, too long, or needs what is not matched here.

    Example:
        >>> Pattern(r"(?!.*vision).*\\.(q|v)_proj").matches("model.layers.0.q_proj")
        True
        >>> Pattern(r"(a|a)*b").matches("a" * 100)
        False
    """

    def __init__(self, text: str) -> None:
        if len(text) > MOST_LETTERS:
            raise PatternError(f"a pattern of {len(text)} characters is longer than the {MOST_LETTERS} that are read")
        try:
            tree = parser.parse(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(f"{text[:80]!r} is no regular expression: {error}") from error
        if tree.state.flags & ~re.UNICODE.value:
            raise PatternError(f"{text[:80]!r} has inline flags, which are not matched here")
        self._text = text
        self._steps: list[_Step] = []
        self._begin = self._sequence(tree, self._add("match", None, 0))

    def matches(self, name: str, starts: Sequence[int] = (0,)) -> bool:
        """Whether the pattern matches a name from one of the places in `starts` to its end."""
        return any(self._run(self._begin, name, start, len(name)) for start in starts)

    def _run(self, begin: int, name: str, start: int, end: int | None) -> bool:
        """Whether the program, from one of its steps, leads to its end; at the place `end`, unless it is None."""
        seen: set[tuple[int, int]] = set()
        todo = [(begin, start)]
        while todo:
            state = todo.pop()
            if state in seen:
                continue
            seen.add(state)
            spend(1)
            number, place = state
            kind, what, after = self._steps[number]
            if kind == "match":
                if end is None or place == end:
                    return True
            elif kind == "letter":
                if place < len(name) and what(name[place]):
                    todo.append((after, place + 1))
            elif kind == "ways":
                todo.extend((way, place) for way in what)
            elif kind == "at":
                if _at(what, name, place):
                    todo.append((after, place))
            elif self._looks(what, name, place):
                todo.append((after, place))
        return False

    def _looks(self, what: tuple[int, int | None, bool], name: str, place: int) -> bool:
        """A look ahead, or behind where a width is given; negated or not."""
        begin, width, negated = what
        if width is None:
            return self._run(begin, name, place, None) is not negated
        return (place >= width and self._run(begin, name, place - width, place)) is not negated

    def _add(self, kind: str, what: Any, after: int) -> int:
        if len(self._steps) >= MOST_STEPS:
            raise PatternError(f"{self._text[:80]!r} repeats more than the {MOST_STEPS} steps that are matched")
        self._steps.append((kind, what, after))
        return len(self._steps) - 1

    def _sequence(self, tree: Any, after: int) -> int:
        """Add the steps of a tree before the step `after`; the first of them."""
        for operation, value in reversed(list(tree)):
            after = self._one(str(operation), value, after)
        return after

    def _one(self, operation: str, value: Any, after: int) -> int:
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._add("letter", _letter(operation, value), after)
        if operation == "BRANCH":
            return self._add("ways", [self._sequence(way, after) for way in value[1]], 0)
        if operation == "SUBPATTERN" and not (value[1] or value[2]):
            return self._sequence(value[3], after)
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, tree = value
            return self._repeat(least, most, tree, after)
        if operation == "AT":
            return self._add("at", str(value), after)
        if operation == "FAILURE":  # what Python 3.13 and later make of `(?!)`
            return self._add("ways", [], 0)
        if operation in ("ASSERT", "ASSERT_NOT"):
            direction, tree = value
            begin = self._sequence(tree, self._add("match", None, 0))
            width = None if direction > 0 else tree.getwidth()[0]
            return self._add("look", (begin, width, operation == "ASSERT_NOT"), after)
        raise PatternError(f"{self._text[:80]!r} has {operation.lower()}, which is not matched here")

    def _repeat(self, least: int, most: Any, tree: Any, after: int) -> int:
        if most is parser.MAXREPEAT:
            loop = self._add("ways", [], 0)
            self._steps[loop][1].extend([self._sequence(tree, loop), after])
            after = loop
        else:
            for _ in range(int(most) - least):
                after = self._add("ways", [self._sequence(tree, after), after], 0)
        for _ in range(least):
            before = len(self._steps)
            after = self._sequence(tree, after)
            if len(self._steps) == before:  # nothing, however often
                break
        return after


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda letter: letter.isalnum() or letter == "_",
}


def _letter(operation: str, value: Any) -> Callable[[str], bool]:
    """Whether a letter is the one, or one of those, that a piece of a pattern means."""
    if operation == "ANY":
        return lambda letter: letter != "\n"
    if operation == "LITERAL":
        return chr(value).__eq__
    if operation == "NOT_LITERAL":
        return chr(value).__ne__
    negated = str(value[0][0]) == "NEGATE"
    tests = [_member(str(kind), item) for kind, item in value[negated:]]
    return lambda letter: any(test(letter) for test in tests) is not negated


def _member(kind: str, item: Any) -> Callable[[str], bool]:
    if kind == "LITERAL":
        return chr(item).__eq__
    if kind == "RANGE":
        low, high = item
        return lambda letter: low <= ord(letter) <= high
    category = str(item).removeprefix("CATEGORY_")
    test, negated = _CATEGORIES[category.removeprefix("NOT_")], category.startswith("NOT_")
    return lambda letter: test(letter) is not negated


def _at(what: str, name: str, place: int) -> bool:
    if what in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return place == 0
    if what == "AT_END":
        return place == len(name) or (place == len(name) - 1 and name.endswith("\n"))
    if what == "AT_END_STRING":
        return place == len(name)
    word = _CATEGORIES["WORD"]
    edge = (place > 0 and word(name[place - 1])) != (place < len(name) and word(name[place]))
    return edge is (what == "AT_BOUNDARY")
