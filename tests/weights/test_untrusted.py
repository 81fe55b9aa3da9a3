"""Files that are not what they should be: opened never, or refused in words."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samerge.errors import AdapterError
from samerge.weights import untrusted
from samerge.weights.fields import NUMBER, TEXT, check_fields, either, list_of, whole
from samerge.weights.untrusted import Origin, open_regular, parse_json, read_json

ORIGIN = Origin("reading the test", AdapterError)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_pipe, "is a pipe, and only regular files"),
        (a_socket, "is a socket, and only regular files"),
        (Path.mkdir, "is a folder, and only regular files"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, and only regular files"),
        (lambda path: path.symlink_to("nowhere"), "cannot be opened: No such file"),
        (lambda path: path.symlink_to(path), "cannot be opened: Too many levels"),
    ],
)
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch, make, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("x.json"))
    with pytest.raises(AdapterError, match=f"^reading the test: x.json {words}"):
        read_json(Path("x.json"), ORIGIN)


def test_a_link_to_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "x").symlink_to("blob")
    with open_regular(tmp_path / "x", ORIGIN) as file:
        assert file.read() == b"{}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[1]", "holds no object with fields, but a list"),
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a": 1, "a": 1}', "the key 'a' stands there twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' stands there twice"),
        (b"\xff{}", "is not UTF-8 text"),
        ("{}".encode("utf-16"), "is not UTF-8 text"),
        (b"\xef\xbb\xbf{}", "is not valid JSON"),
        (b'{"a": NaN}', "the number NaN is not finite"),
        (b'{"a": -Infinity}', "the number -Infinity is not finite"),
        (b'{"a": 1e999}', "the number 1e999 is not finite"),
        (b'{"a": ' + b"9" * 41 + b"}", "has 41 digits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "has 5000 digits"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 64"),
        (b'{"a": ' + b"[" * 100_000, "nested deeper than 64"),
        (b'{"a": ' * 100_000, "nested deeper than 64"),
    ],
)
def test_json_is_read_strictly(data: bytes, words: str) -> None:
    with pytest.raises(AdapterError, match=f"^reading the test: x.json .*{words}"):
        parse_json(data, "x.json", ORIGIN)


def test_bounds_come_before_parsing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(untrusted.json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}')
    with pytest.raises(AdapterError, match="is larger than 7 bytes"):
        read_json(path, ORIGIN, most=7)
    monkeypatch.setattr(untrusted, "MOST_VALUES", 10)
    with pytest.raises(AdapterError, match="holds 12 values, more than the 10"):
        parse_json(b'{"a": [' + b"," * 10 + b"]}", "x.json", ORIGIN)


def test_what_transformers_writes_into_a_configuration_is_taken_where_it_is_allowed() -> None:
    assert parse_json(b'{"time_step_limit": [0.0, Infinity]}', "x", ORIGIN, infinite=True)["time_step_limit"][0] == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text("ab"), VALUES), st.booleans())
def test_sound_json_is_what_it_was(value: dict[str, object], ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), "x", ORIGIN) == value


@given(st.binary(max_size=40) | st.text('{}[]":,0e1.\\u-d8', max_size=40).map(str.encode))
def test_any_bytes_become_an_object_or_an_error_of_ours(data: bytes) -> None:
    with contextlib.suppress(AdapterError):
        assert isinstance(parse_json(data, "x", ORIGIN), dict)


def test_fields() -> None:
    kinds = {"a": whole(1, 3), "b": either(TEXT, list_of(TEXT, 2)), "c": NUMBER}
    check_fields({"a": 2, "b": ["x"], "c": 1.5, "other": object()}, kinds, "x.json", ORIGIN, needed=("a",))
    check_fields({"b": None}, kinds, "x.json", ORIGIN)
    for fields, words in (
        ({}, "does not say a; it must be a whole number from 1 to 3"),
        ({"a": None}, "says null for a; it must be"),
        ({"a": True}, "says a=True; it must be a whole number from 1 to 3"),
        ({"a": 4}, "says a=4; it must be"),
        ({"a": 1, "b": ["x", "y", "z"]}, "it must be a text or a list of at most 2 entries, each a text"),
        ({"a": 1, "c": float("inf")}, "says c=inf; it must be a finite number"),
    ):
        with pytest.raises(AdapterError, match=f"^reading the test: x.json {words}|{words}"):
            check_fields(fields, kinds, "x.json", ORIGIN, needed=("a",))
