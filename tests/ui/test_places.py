"""What a visitor's words may reach."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samerge.errors import OptionError
from samerge.ui.offered import adapters_in, bases_in
from samerge.ui.places import Places, named_folders


@pytest.mark.parametrize(
    "text",
    ["loras/math", "./loras/math", " loras/math ", "shelf/loras/math", "loras/../loras/math", "{shelf}/loras/math"],
)
def test_what_lies_in_a_named_folder(places: Places, shelf: Path, text: str) -> None:
    assert places.source(text.format(shelf=shelf), "adapter") == str(shelf / "loras" / "math")


def test_a_file_and_the_folder_itself(places: Places, shelf: Path) -> None:
    assert places.source("loras/math/adapter_model.safetensors", "adapter").endswith("adapter_model.safetensors")
    assert named_folders([str(shelf / "base")], True).source(".", "base") == str(shelf / "base")


@pytest.mark.parametrize(
    "text",
    [
        "/etc",
        "/",
        "~",
        "~root",
        "~nobody-of-this-name/x",
        "a/" * 3000,
        "{outside}/math",
        "../outside/math",
        "loras/../../outside/math",
        "outside/math",  # there, from the current folder: it would be opened in place of a repository
        "{shelf}x",
        "loras/nothing/../../../outside",
        "./nothing",
        "..",
        "file:///etc",
        "https://huggingface.co/ada/math",
        "ada/../../etc",
        "ada/math@../../x",
        "ada\\math",
        "C:\\loras",
        "c:/loras",
        "a b/c",
        "-o/x",
        "ada/mäth",
        "",
        "  ",
        "loras/math\0",
    ],
)
def test_nothing_else(places: Places, shelf: Path, text: str) -> None:
    given = text.format(shelf=shelf, outside=shelf.parent / "outside")
    with pytest.raises(OptionError):
        places.source(given, "adapter")
    with pytest.raises(OptionError):
        Places().source(given, "adapter")


@pytest.mark.parametrize(
    "text", ["ada/math", "ada/math@v2", "ada/loras/math@refs/pr/1", "gpt2", "ada/m.a_t-h/f.safetensors"]
)
def test_repositories(places: Places, text: str) -> None:
    assert places.source(text, "adapter") == text
    assert Places().source(text, "adapter") == text


def test_strangers_are_not_told_what_is_here(places: Places, shelf: Path) -> None:
    def told(text: str) -> str:
        with pytest.raises(OptionError) as refused:
            Places().source(text, "adapter")
        return str(refused.value).replace(text, "it")

    assert told(str(shelf)) == told("/no/such/folder") == told("shelf/loras/math")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_are_followed(places: Places, shelf: Path) -> None:
    outside = shelf.parent / "outside" / "math"
    (shelf / "linked").symlink_to(outside)
    with pytest.raises(OptionError, match="does not lie below"):
        places.source("linked", "adapter")
    inside = shelf / "mine"
    inside.mkdir()
    (inside / "adapter_config.json").symlink_to(shelf / "loras" / "math" / "adapter_config.json")
    assert places.source("mine", "adapter") == str(inside)
    (inside / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    with pytest.raises(OptionError, match=r"adapter_model\.safetensors in it is a link that leads out"):
        places.source("mine", "adapter")
    both = named_folders([str(shelf), str(outside)], True)
    assert both.source("mine", "adapter") == str(inside)
    assert both.source("linked", "adapter") == str(outside)


def test_a_link_a_folder_further_down(places: Places, shelf: Path) -> None:
    (shelf / "run" / "checkpoint").mkdir(parents=True)
    (shelf / "run" / "checkpoint" / "adapter_config.json").symlink_to("/etc/hostname")
    with pytest.raises(OptionError, match="leads out"):
        places.source("run", "adapter")


@pytest.mark.parametrize("text", ["merged", "new/merged", "./merged", "{shelf}/merged", "loras/../merged"])
def test_where_results_go(places: Places, shelf: Path, text: str) -> None:
    assert places.target(text.format(shelf=shelf)).is_relative_to(shelf)


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "/tmp/x", "~/x", "loras/../../x", "linked/x", "{shelf}"])
def test_where_they_do_not(places: Places, shelf: Path, text: str) -> None:
    (shelf / "linked").symlink_to(shelf.parent / "outside")
    with pytest.raises(OptionError):
        places.target(text.format(shelf=shelf))
    with pytest.raises(OptionError):
        Places().target("merged")


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="--folder no/such: there is no such folder"):
        named_folders(["no/such"], True)


def test_what_is_offered(places: Places, shelf: Path) -> None:
    (shelf / ".hidden").mkdir()
    (shelf / ".hidden" / "adapter_config.json").write_text("{}")
    (shelf / "linked").symlink_to(shelf.parent / "outside")
    assert adapters_in(places.folders) == [(f"loras/{name}", str(shelf / "loras" / name)) for name in ("code", "math")]
    assert bases_in(places.folders) == [("base", str(shelf / "base"))]
    assert bases_in([shelf / "base"]) == [("base", str(shelf / "base"))]
    two = adapters_in([shelf / "loras", shelf.parent / "outside"])
    assert [shown for shown, _ in two] == ["loras: code", "loras: math", "outside: math"]
