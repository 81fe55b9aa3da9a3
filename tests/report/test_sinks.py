"""Names of strangers reach a terminal, Markdown and JSON as letters and as nothing else."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from samerge.report.card import model_card
from samerge.report.sinks import console, markdown, visible, visible_json
from samerge.report.stored import AdapterInLayer, Base, Input, LayerRecord

from .records import RECORD

EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\ud800"


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = visible(text)
    assert all(letter in "\t\n" or (" " <= letter != "\x7f" and not "\x80" <= letter <= "\x9f") for letter in shown)
    shown.encode()  # no half of a surrogate pair
    assert visible(shown) == shown


def test_a_console_obeys_itself_alone() -> None:
    stream = io.StringIO()
    out = console(file=stream, force_terminal=True, color_system="standard", width=200, highlight=False)
    table = Table()
    table.add_column("name")
    table.add_row(EVIL)
    out.print(Text(EVIL, style="red"))
    out.print(table)
    out.print(EVIL, markup=False)
    said = stream.getvalue()
    assert "\x1b[31m" in said  # its own colour
    assert "\x1b[2J" not in said
    assert "\x1b]0" not in said
    assert not set("\x07\x9b\u202e\ud800") & set(said)
    assert said.count("\\x1b[2J") == 3


@pytest.mark.parametrize("name", ["lines:a:b", "out:x:", "C:smile:"])
def test_a_name_is_no_picture(name: str) -> None:
    stream = io.StringIO()
    out = console(file=stream, width=200)
    table = Table()
    table.add_column("name")
    table.add_row(name)
    out.print(table)
    out.print(name, markup=False)
    out.print(name)
    assert stream.getvalue().count(name) == 3


@given(st.text(st.characters(exclude_categories=[])))
def test_json_says_the_same(text: str) -> None:
    shown = visible_json(json.dumps({text: text}, ensure_ascii=False))
    shown.encode()
    assert json.loads(shown) == {text: text}


@pytest.mark.parametrize(
    "name",
    ["<img src=x onerror=alert(1)>", "[click](https://evil.example)", "![p](http://e.example/x.png)", "`code`",
     "# title", "&lt;b&gt;", "a|b", "\\<b>", "www.evil.example", "@everyone", "line\n# two"],
)  # fmt: skip
def test_a_card_shows_names_as_letters(name: str) -> None:
    escaped = markdown(name)
    for mark in "<>[]`|#&!@":
        assert escaped.count(mark) == escaped.count(f"\\{mark}")
    assert "://" not in escaped
    assert "\n" not in escaped
    layers = {"q": LayerRecord({name: AdapterInLayer(1.0)}, 1.0)}
    told = (f"about {name}",)
    record = replace(
        RECORD, method="linear", base=Base(f"/x/{name}"), inputs=(Input(name, name),), layers=layers, warnings=told
    )
    card = model_card(record)
    outside = [part for number, part in enumerate(card.split("```")) if number % 2 == 0]
    plain = "".join(part for text in outside for part in text.split("`")[::2])
    assert "<img" not in plain.replace("\\<", "")
    assert "](http" not in plain.replace("\\]", "").replace("](https://huggingface.co/", "")
    assert "![" not in plain.replace("\\!", "")
