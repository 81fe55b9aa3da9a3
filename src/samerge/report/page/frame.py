"""What every page has around its content: a document of its own, or a piece of a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samerge.report.facts import escaped
from samerge.report.page.style import GROUND, sheet
from samerge.version import __version__

#: Nothing is fetched, nothing runs; the sheet of style is in the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        key: its name in the page's address.
        title: over it.
        content: HTML.
    """

    key: str
    title: str
    content: str


def document(title: str, head: str, sections: Sequence[Section], foot: str = "") -> str:
    """A page of its own, with a list of its parts and a way past it.

    Args:
        title: of the window, as text.
        head: HTML, what stands before the parts, with the only heading of the first level.
        sections: the parts.
        foot: HTML, below them.
    """
    contents = "".join(f'<li><a href="#{one.key}">{escaped(one.title)}</a></li>' for one in sections)
    body = "".join(f'<section id="{one.key}"><h2>{escaped(one.title)}</h2>{one.content}</section>' for one in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="generator" content="samerge {escaped(__version__)}">'
        f'<title>{escaped(title)}</title><link rel="icon" href="data:,"><style>{GROUND}{sheet()}</style></head>'
        '<body><div class="samerge"><a class="skip" href="#main">Skip to the report</a>'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>'
        f'<main id="main" tabindex="-1">{head}{body}</main>{foot}</div></body></html>\n'
    )


def fragment_of(head: str, sections: Sequence[Section], foot: str = "") -> str:
    """The same for a notebook, without what a document of its own has; no names that two of them would share."""
    body = "".join(f"<h2>{escaped(one.title)}</h2>{one.content}" for one in sections)
    return f'<div class="samerge"><style>{sheet()}</style>{head}{body}{foot}</div>'
