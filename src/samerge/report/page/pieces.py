"""Pieces of HTML. Whatever comes from a record goes through `escaped`: names are letters, never markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from samerge.report.facts import breaking, escaped, scrolled
from samerge.report.picture import Heat
from samerge.report.sinks import visible

#: What `wording` writes of Markdown: a name between backticks, and a link. The name is looked for first.
_MARKED = re.compile(r"`([^`]*)`|\[([^\]]*)\]\((https://[^)\s]*)\)")
#: Names of columns that are longer stand upright.
_LONG = 5


def prose(markdown: str) -> str:
    """A paragraph of the report's own Markdown.

    Example:
        >>> prose("as [they](https://a.org/) say, `<b>[x](https://b.org)`")
        '<p>as <a href="https://a.org/">they</a> say, <code>&lt;b&gt;[x](https://b.org)</code></p>'
    """
    found, place = [], 0
    for mark in _MARKED.finditer(markdown):
        found.append(_between(markdown[place : mark.start()]))
        name, words, address = mark.groups()
        told = (name or "").replace("\\|", "|")  # as it stands in a cell of a table
        found.append(
            f"<code>{escaped(told)}</code>" if address is None else f'<a href="{escaped(address)}">{escaped(words)}</a>'
        )
        place = mark.end()
    return f"<p>{''.join(found)}{_between(markdown[place:])}</p>"


def _between(words: str) -> str:
    """Text of which the spaces at its ends matter."""
    return html.escape(re.sub(r"\s+", " ", words)) if words.strip() else words


def items(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, beside each other."""
    return (
        f"<dl>{''.join(f'<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>' for name, value in pairs)}</dl>"
    )


def heat_map(heat: Heat, over: str) -> str:
    """A heat map as a table: every number stands in its cell, so that no colour is needed to read it.

    Args:
        heat: the numbers.
        over: what a row and what a column is of, for the corner.
    """
    long = ' class="long"' if max(map(len, heat.columns), default=0) > _LONG else ""
    head = "".join(f'<th scope="col"><span{long}>{escaped(name)}</span></th>' for name in heat.columns)
    body = "".join(
        f'<tr><th scope="row"><span>{breaking(name)}</span></th>{"".join(_cell(heat, value) for value in row)}</tr>'
        for name, row in zip(heat.rows, heat.values, strict=True)
    )
    drawn = (
        f'<table class="heat"><caption class="heard">{escaped(heat.title)}</caption>'
        f'<thead><tr><th scope="col" class="name">{escaped(over)}</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    )
    title, how = escaped(heat.title), escaped(heat.how)
    return f'<h3>{title}</h3><p class="how">{how}</p>{scrolled(heat.title, drawn)}'


def _cell(heat: Heat, value: float | None) -> str:
    level = heat.level(value)
    side = "z" if not level else f"u{level}" if level > 0 else f"d{-level}"
    return f'<td class="{side}">{escaped(heat.shown(value))}</td>'


def listing(name: str, code: str) -> str:
    """Lines to type."""
    lines = "\n".join(html.escape(visible(line)) for line in code.splitlines())
    return f'<pre role="region" tabindex="0" aria-label="{escaped(name)}"><code>{lines}</code></pre>'
