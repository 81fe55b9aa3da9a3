from __future__ import annotations

import math

import pytest

from samerge import OptionError
from samerge.cli.named_adapter import AdapterSpec, default_name, given_weights, parse_adapter, unique
from samerge.merging.inputs import named
from samerge.ui.work import _named


@pytest.mark.parametrize(
    ("text", "name", "source", "weight"),
    [
        ("ada/math-lora", "math-lora", "ada/math-lora", 1.0),
        ("math=ada/math-lora", "math", "ada/math-lora", 1.0),
        ("math=ada/math-lora:0.8", "math", "ada/math-lora", 0.8),
        ("ada/math-lora:0.8", "math-lora", "ada/math-lora", 0.8),
        ("./code-lora:-0.5", "code-lora", "./code-lora", -0.5),
        ("code=./code-lora:+2", "code", "./code-lora", 2.0),
        ("code=./code-lora/:.5", "code", "./code-lora/", 0.5),
        ("a=bb:1e-2", "a", "bb", 0.01),
        ("a=bb:1.", "a", "bb", 1.0),
        ("a=bb:0", "a", "bb", 0.0),
        # drive letters
        ("C:\\loras\\math", "math", "C:\\loras\\math", 1.0),
        ("C:\\loras\\math:0.5", "math", "C:\\loras\\math", 0.5),
        ("m=C:\\loras\\math:0.5", "m", "C:\\loras\\math", 0.5),
        ("m=C:/loras/math", "m", "C:/loras/math", 1.0),
        ("m=C:7", "m", "C:7", 1.0),
        # names with colons and blanks; only the first = ends a name
        ("v1:math=ada/math:2", "v1:math", "ada/math", 2.0),
        ("my math=ada/math", "my math", "ada/math", 1.0),
        ("a=b=c", "a", "b=c", 1.0),
        # a name holds no slash, so this is a path with an = in it
        ("./runs/lr=1e-4/final:2", "final", "./runs/lr=1e-4/final", 2.0),
        ("x=./runs/lr=1e-4/final", "x", "./runs/lr=1e-4/final", 1.0),
        # a revision and a folder of a repository
        ("ada/math@v2", "math", "ada/math@v2", 1.0),
        ("ada/loras/math@refs/pr/1:0.5", "math", "ada/loras/math@refs/pr/1", 0.5),
    ],
)
def test_parse(text: str, name: str, source: str, weight: float) -> None:
    assert parse_adapter(text, is_folder=lambda path: False) == AdapterSpec(name, source, weight)


@pytest.mark.parametrize(
    ("text", "folder", "expected"),
    [
        ("lr=1e-4", "lr=1e-4", AdapterSpec("lr=1e-4", "lr=1e-4")),
        ("run:2", "run:2", AdapterSpec("run:2", "run:2")),
        ("run:2:3", "run:2", AdapterSpec("run:2", "run:2", 3.0)),
        ("a=run:2", "run:2", AdapterSpec("a", "run:2")),
        ("c:2", "c", AdapterSpec("c", "c", 2.0)),
    ],
)
def test_existing_folder_wins(text: str, folder: str, expected: AdapterSpec) -> None:
    parsed = parse_adapter(text, is_folder=lambda path: path == folder)
    assert (parsed.source, parsed.weight) == (expected.source, expected.weight)


def test_default_name_of_the_current_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "my-lora").mkdir()
    monkeypatch.chdir(tmp_path / "my-lora")
    assert parse_adapter(".").name == "my-lora"
    assert default_name("./") == "my-lora"


def test_weights_that_are_not_finite_are_left_to_the_merge_to_refuse() -> None:
    assert parse_adapter("a=bb:inf", lambda path: False).weight == math.inf
    assert math.isnan(parse_adapter("a=bb:nan", lambda path: False).weight)


@pytest.mark.parametrize("text", ["", "  ", "=ada/x", "a=", "a=:0.5", ":0.5"])
def test_empty_parts(text: str) -> None:
    with pytest.raises(OptionError, match=r"is empty; write \[name=\]source\[:weight\]"):
        parse_adapter(text, is_folder=lambda path: False)


@pytest.mark.parametrize("text", ["a=bb:c", "ada/bb:1_0", "a=bb:", "./bb:0x1", "ada/bb@v2:much"])
def test_a_weight_that_is_no_number(text: str) -> None:
    with pytest.raises(OptionError, match=r"is no number, and a weight stands behind the last colon, such as .*:0\.8"):
        parse_adapter(text, is_folder=lambda path: False)


def test_unique() -> None:
    a, b = AdapterSpec("lora", "x/lora"), AdapterSpec("lora", "y/lora")
    with pytest.raises(OptionError, match=r"two adapters are called 'lora': x/lora and y/lora.*lora-2=y/lora"):
        unique([a, b])
    with pytest.raises(OptionError, match="no adapter given"):
        unique([])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("./math:0,8", "./math:0.8"),
        ("m=ada/math:1,5", "m=ada/math:1.5"),
        ("./math=0.8", "./math:0.8"),
        ("math=0.8", "math:0.8"),
        ("ada/math=0,8", "ada/math:0.8"),
    ],
)
def test_weights_written_in_another_way_are_answered_with_the_right_one(text: str, right: str) -> None:
    with pytest.raises(OptionError) as told:
        parse_adapter(text, is_folder=lambda path: False)
    assert right.partition("=")[2] in str(told.value) if "=" in right else right in str(told.value)


def test_weights() -> None:
    two = [AdapterSpec("a", "x/a"), AdapterSpec("b", "x/b")]
    assert given_weights(None, [AdapterSpec("a", "x/a", 0.5)]) == {"a": 0.5}
    assert given_weights("0.5,-1", two) == {"a": 0.5, "b": -1.0}
    assert given_weights("b=0.5", two) == {"a": 1.0, "b": 0.5}
    assert given_weights("nan", two) == "nan"
    for text, message in (
        ("1,2,3", "3 weights for 2 adapters"),
        ("0.5,much", "'much' is no number"),
        ("c=1", "no adapter is called 'c'"),
    ):
        with pytest.raises(OptionError, match=message):
            given_weights(text, two)
    with pytest.raises(OptionError, match="give one or the other"):
        given_weights("1", [AdapterSpec("a", "x/a", 0.5)])


def test_the_library_the_shell_and_the_page_give_one_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "my-lora").mkdir()
    monkeypatch.chdir(tmp_path / "my-lora")
    (tmp_path / "my-lora" / "a@b.safetensors").touch()
    for source, name in ((".", "my-lora"), ("ada/math@v2", "math"), ("a@b.safetensors", "a@b")):
        assert [named([source], "adapters")[0][0], *_named([source]), parse_adapter(source).name] == [name] * 3
