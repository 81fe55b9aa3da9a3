"""Text on its way out: what a terminal or Markdown would take for more than letters is escaped where it leaves.

Names and configurations are a stranger's. They are kept as they are until they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Control characters but for tab and line feed, marks that turn the direction of writing, halves of surrogate pairs.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

#: What Markdown would take for HTML, a link, a picture, a heading, a mention or the end of a cell.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|!~#@]|(?<=:)//|(?<=www)\.", re.IGNORECASE)


def visible(text: str) -> str:
    """Text for a terminal: what would move the cursor, colour, or reorder it is shown as an escape.

    Example:
        >>> visible("a" + chr(27) + "[2Jb")
        'a\\\\x1b[2Jb'
    """
    return _HIDDEN.sub(_code, text)


def visible_json(text: str) -> str:
    """JSON for a terminal: the same text to whoever parses it."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(text: str) -> str:
    """Text on one line, visible: a file's names may come from anywhere."""
    return visible(" ".join(text.split()))


def markdown(text: str) -> str:
    """Text for Markdown: on one line, each letter standing for itself.

    Example:
        >>> markdown("<b>|a_b")
        '\\\\<b\\\\>\\\\|a_b'
    """
    return _MARKDOWN.sub(r"\\\g<0>", shown(text))


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def console(**options: Any) -> Console:
    """A rich console that shows what is printed as it is: control characters escaped, `:x:` no emoji, by default."""
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class Sink(Console):
        def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return Sink(**{"emoji": False, **options})
