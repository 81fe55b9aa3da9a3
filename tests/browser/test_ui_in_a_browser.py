"""`samerge ui` from end to end in a real browser: look, move weights, merge, download, save; strange names; widths."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Tab, browser
from cli.conftest import loras, tiny_base
from killing import hear_interrupts
from safetensors.torch import load

import samerge

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"),
]
__all__ = ["loras", "tiny_base"]

#: A name that would run a script as markup, and two that a template would fill in.
EVIL = "<img src=x onerror=window.ran=1>${1+1}{{value}}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, loras: Path, tiny_base: Path) -> Path:
    root = tmp_path_factory.mktemp("page") / "shelf"
    shutil.copytree(tiny_base, root / "base")
    for name in ("math", "code"):
        shutil.copytree(loras / name, root / "loras" / name)
    shutil.copytree(loras / "code", root / EVIL)
    shutil.copytree(loras / "math", root.parent / "outside" / "math")
    return root


#: The command line, in a process that says so when it asks the network for anything.
WATCHED = """
import socket, sys
connect, look_up, own = socket.socket.connect, socket.getaddrinfo, ("127.0.0.1", "::1", "localhost", "", None)
def watched(self, address):
    if self.family != socket.AF_UNIX and address[0] not in own:
        print("NETWORK", address, file=sys.stderr)
    return connect(self, address)
def asked(host, *more, **options):
    if host not in own:
        print("NETWORK", host, file=sys.stderr)
    return look_up(host, *more, **options)
socket.socket.connect, socket.getaddrinfo = watched, asked
"""
RUN = """
from samerge.cli import run
run()
"""
#: A merge that is half done until a file is there.
SLOW = """
import os, time
from samerge.ui import work
merged = work.merged
def slowly(looked, weights, method, options, bars):
    with bars.task("halfway", 10) as advance:
        advance(5)
        while not os.path.exists("go"):
            time.sleep(0.05)
    return merged(looked, weights, method, options, bars)
work.merged = slowly
"""


@contextlib.contextmanager
def serving(folder: Path, before: str = "") -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-W", "ignore", "-c", WATCHED + before + RUN]
    words += ["ui", "--folder", str(folder), "--port", str(port)]
    how = {"stderr": subprocess.PIPE, "text": True, "cwd": folder.parent, "preexec_fn": hear_interrupts}
    with subprocess.Popen(words, **how) as server:
        assert server.stderr is not None
        try:
            told = next((line for line in server.stderr if "samerge is at" in line), "")
            assert told, "the server did not start"
            yield re.search(r"http://\S+?(?=/?;)", told)[0]  # type: ignore[index]
        finally:
            server.send_signal(signal.SIGINT)
            left = server.stderr.read()
            assert server.wait(60) == 0, left
            assert "Traceback" not in left
            assert "NETWORK" not in told + left


@pytest.fixture(scope="module")
def address(shelf: Path) -> Iterator[str]:
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("samerge-ui-*"))
    with serving(shelf) as found:
        yield found
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("samerge-ui-*")) <= before, "files for download stay behind"


@contextlib.contextmanager
def opened(address: str, folder: Path) -> Iterator[Tab]:
    with browser(folder) as found:
        found.size(1280)
        found.go(address)
        found.wait("document.querySelector('#look')")
        yield found
        own = (address, "data:", "blob:", "about:", "chrome")
        assert [url for url in found.requests if not url.startswith(own)] == [], "it asked somebody else"
        assert not found.value("Boolean(window.ran)"), "a name became markup"


@pytest.fixture
def tab(address: str, tmp_path: Path) -> Iterator[Tab]:
    with opened(address, tmp_path) as found:
        yield found


def look(tab: Tab, base: str, *adapters: str) -> None:
    tab.type("#base input", base, "Enter")
    for adapter in adapters:
        tab.type("#adapters input", adapter, "Enter", "Tab")
    tab.click("#look")


def shown(tab: Tab, place: str, words: str) -> str:
    """The text of a part of the page once it has some words."""
    told: str = tab.wait(
        f"(n => n && n.innerText.includes({json.dumps(words)}) && n.innerText)(document.querySelector('{place}'))"
    )
    return told


def downloaded(tab: Tab, folder: Path) -> Path:
    tab.click("#pack")
    tab.click("#zip")
    tab.wait("true")
    for _ in range(600):
        found = list(folder.glob("*.zip"))
        if found:
            return found[0]
        tab.value("new Promise(done => setTimeout(() => done(true), 200))")
    raise AssertionError("no file came")


def test_from_the_folders_to_the_file(tab: Tab, shelf: Path, tmp_path: Path) -> None:
    look(tab, "base", "loras/math", "loras/code")
    told = shown(tab, "#looked", "Who goes whose way")
    assert "LORA, rank 4, scale 2, F32, 576 parameters" in told
    assert "No two of these adapters work against each other" in told
    assert "576" in told
    tab.click("#merge")
    assert "saliency: rank 4" in shown(tab, "#figures", "What became of each adapter")

    tab.type("#weight-1 input[type=number]", "0.5", "Tab")
    tab.type("#rank input, #rank textarea", "3", "Tab")
    tab.click("#merge")
    assert "1 \u2192 0.5" in shown(tab, "#figures", "Beside the merge before")
    assert "rank 4 \u2192 saliency, rank 3" in shown(tab, "#figures", "The whole:")
    tab.click("#whole button")
    assert "How to load it" in shown(tab, "#report", "Options and timings")

    other = samerge.merge(
        str(shelf / "base"),
        {name: str(shelf / "loras" / name) for name in ("math", "code")},
        weights={"math": 1.0, "code": 0.5},
        rank=3,
        progress=False,
    )
    with zipfile.ZipFile(downloaded(tab, tmp_path / "downloads")) as archive:
        tensors = load(archive.read("merged/adapter_model.safetensors"))
        record = json.loads(archive.read("merged/samerge.json"))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in other.tensors().items()
    }
    assert {name: one["weight"] for name, one in record["adapters"].items()} == {"math": 1.0, "code": 0.5}

    tab.click("#disk button")
    tab.type("#folder input, #folder textarea", "../merged")
    tab.click("#save")
    shown(tab, "#take-notice", "must be a new folder below")
    tab.type("#folder input, #folder textarea", "merged")
    tab.click("#save")
    shown(tab, "#take-notice", "Saved in")
    assert (shelf / "merged" / "adapter_model.safetensors").is_file()
    assert not (shelf.parent / "merged").exists()


def test_figures_follow_the_weights(tab: Tab) -> None:
    look(tab, "base", "loras/math", "loras/code")
    shown(tab, "#looked", "Who goes whose way")
    tab.click("#live input")
    shown(tab, "#figures", "saliency: rank 4")
    tab.type("#weight-0 input[type=number]", "-1", "Tab")
    shown(tab, "#figures", "1 \u2192 -1")
    tab.type("#rank input, #rank textarea", "much", "Tab")
    shown(tab, "#merge-notice", "must be a whole number")
    tab.type("#rank input, #rank textarea", "2", "Tab")
    shown(tab, "#figures", "saliency: rank 2")


def test_a_bar_tells_how_far_it_is(shelf: Path, tmp_path: Path) -> None:
    with serving(shelf, SLOW) as address, opened(address, tmp_path) as tab:
        look(tab, "", "loras/math")
        shown(tab, "#looked", "What they contain")
        tab.click("#merge")
        try:
            assert "halfway" in shown(tab, "#how", "50.0%")
        finally:
            (shelf.parent / "go").touch()
        shown(tab, "#figures", "even: rank 4")


def test_what_may_not_be_read(tab: Tab, shelf: Path) -> None:
    look(tab, "", str(shelf.parent / "outside" / "math"))
    assert "does not lie below" in shown(tab, "#looked", "nothing else is read on this machine")
    assert not tab.value("Boolean(document.querySelector('#merge')?.offsetHeight)")


def test_a_name_is_letters(tab: Tab) -> None:
    look(tab, "base", "loras/math", EVIL)
    told = shown(tab, "#looked", "Who goes whose way")
    assert told.count(EVIL) > 2
    tab.click("#merge")
    assert EVIL in shown(tab, "#figures", "What became of each adapter")
    assert EVIL in shown(tab, "#how", "Method")  # over its slider


def test_it_fits_a_telephone(tab: Tab) -> None:
    tab.size(400)
    look(tab, "base", "loras/math", "loras/code")
    shown(tab, "#looked", "Who goes whose way")
    assert tab.value("document.documentElement.scrollWidth") <= 400
    tab.click("#merge")
    shown(tab, "#figures", "What became of each adapter")
    assert tab.value("document.documentElement.scrollWidth") <= 400
    tab.click("#whole button")
    shown(tab, "#report", "Options and timings")
    assert tab.value("document.documentElement.scrollWidth") <= 400


def status(address: str, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=60) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_gives_no_file(address: str, shelf: Path) -> None:
    """Neither one of the machine, nor one of the folders: those are for merging, not for download."""
    assert status(address, "/") == 200
    assert status(address, "/", Host="evil.example") == 403
    for file in ("/etc/passwd", shelf / "loras" / "math" / "adapter_model.safetensors", Path(__file__)):
        assert status(address, f"/gradio_api/file={file}") == 403
