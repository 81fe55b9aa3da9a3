"""What is refused before gradio sees it, and whose login is used."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, Repo
from tiny import write_adapter

from samerge.ui.server import LOOPBACK, Guard

ROOT = Path(__file__).resolve().parents[2]


def answer(
    hosts: tuple[str, ...] | None, host: str, path: str = "/", origin: str = "", alone: bool = True
) -> tuple[int, dict[bytes, bytes]]:
    """The status and the headers that a request gets, where the app itself always answers 200."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"Host", host.encode()), *([(b"Origin", origin.encode())] if origin else [])]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Guard(app, hosts, alone)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860"])
def test_the_names_of_this_machine(host: str) -> None:
    status, headers = answer(LOOPBACK, host)
    assert status == 200
    assert b"frame-ancestors 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "", "10.0.0.1", "["])
def test_no_other_name(host: str) -> None:
    assert answer(LOOPBACK, host)[0] == 403
    assert answer(None, host) == (200, {})  # behind another address, and in the frame of a Space


@pytest.mark.parametrize("hosts", [LOOPBACK, None])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:8000", "http://127.0.0.1", "null", "http://["]
)
def test_no_other_page_asks_through_its_readers(hosts: Any, origin: str) -> None:
    assert answer(hosts, "127.0.0.1:7860", origin=origin)[0] == 403
    assert answer(hosts, "127.0.0.1:7860", origin="http://127.0.0.1:7860")[0] == 200
    assert answer(None, "x.hf.space", origin="https://x.hf.space")[0] == 200
    assert answer(None, "127.0.0.1:7860", origin=origin, alone=False)[0] == 200  # a Space


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/gradio_api/upload", 403),
        ("/gradio_api/file=https://example.org/x", 403),
        ("/gradio_api/file=http://169.254.169.254/", 403),
        ("/gradio_api/proxy=https://example.org/", 403),
        ("/gradio_api/file=/tmp/samerge-ui-x/merged-y/merged.zip", 200),
        ("/gradio_api/queue/join", 200),
    ],
)
def test_routes_that_the_page_does_not_need(path: str, status: int) -> None:
    assert answer(None, "any", path)[0] == status
    assert answer(LOOPBACK, "localhost", path)[0] == status


def test_a_lifespan_passes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send("started")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(app, LOOPBACK, True)({"type": "lifespan"}, None, send))
    assert sent == ["started"]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT / "examples" / "space",
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_gradio() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from typer.testing import CliRunner\nfrom samerge.cli import app\n"
        "done = CliRunner().invoke(app, ['ui'])\nprint(done.exit_code, done.stderr)"
    )
    assert python(code).stdout.strip() == "2 error: the page needs gradio: pip install 'samerge[ui]'"


def test_a_space_builds_and_uses_no_login() -> None:
    """Without a server; the token of the Space stays where it is, and what opens more than the page is not heard."""
    pytest.importorskip("gradio")
    code = (
        "import os, app\nfrom huggingface_hub.utils import build_hf_headers\n"
        "page = app.page\n"
        "print(type(page).__name__, page.analytics_enabled, 'authorization' in build_hf_headers(),\n"
        "      build_hf_headers(token='hf_mine')['authorization'], 'GRADIO_ALLOWED_PATHS' in os.environ)\n"
        "print({fn.api_visibility for fn in page.fns.values()})\n"
        "print('Save on this machine' in [block.label for block in page.blocks.values()\n"
        "      if getattr(block, 'label', None) and block.visible])\n"
    )
    done = python(code, HF_TOKEN="hf_of_the_space", GRADIO_ALLOWED_PATHS="/")
    assert done.stdout.splitlines() == ["Blocks False False Bearer hf_mine False", "{'private'}", "False"], done.stderr


def test_a_space_that_would_use_its_own_token_does_not_start() -> None:
    pytest.importorskip("gradio")
    done = python(
        "import huggingface_hub.constants, app", HF_TOKEN="hf_of_the_space", HF_HUB_DISABLE_IMPLICIT_TOKEN="0"
    )
    assert "OptionError: huggingface_hub was imported before the page" in done.stderr


def test_the_header_of_the_space() -> None:
    import yaml

    text = (ROOT / "examples" / "space" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")
    assert len(header["short_description"]) <= 60  # the Hub's limit
    bound = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition('"gradio>=')[2].partition('"')[0]
    assert header["sdk_version"].startswith(bound)


STRANGER = """
from samerge.ui.server import check_gradio
check_gradio(own_login=False)
from samerge.parallel.progress import Progress
from samerge.ui import work
from samerge.ui.places import Places
found = work.look(Places((), False), None, ["ada/secret"], Progress(enabled=False)).reports[0]
print(bool(found.problems), found.contents())
"""


def test_a_stranger_does_not_read_what_the_owner_has_downloaded(tmp_path: Path) -> None:
    """The Hub's library hands out of its cache what the Hub refuses."""
    pytest.importorskip("gradio")
    folder = write_adapter(tmp_path / "secret", {"m.q_proj": (torch.randn(2, 8), torch.randn(8, 2))})
    hub = HubServer()
    try:
        hub.repos["ada/secret"] = Repo(private=True)
        hub.repos["ada/secret"].commit({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        places |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        read = "from samerge.weights.hub import resolve_adapter\nprint(resolve_adapter('ada/secret'))"
        owner = python(read, **{**places, "HF_TOKEN": "hf_ada"})
        assert "snapshots" in owner.stdout, owner.stderr
        assert "snapshots" in python(read, **places).stdout  # without a token, out of the cache
        done = python(STRANGER, **places)
        assert done.stdout.strip() == "True []", done.stderr
    finally:
        hub.close()
