"""Serving the page: where it listens, and what gradio's server would do beyond the page, refused."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from samerge.errors import OptionError
from samerge.ui.places import Places

if TYPE_CHECKING:
    import gradio as gr

#: The addresses that only this machine reaches.
LOOPBACK = ("127.0.0.1", "localhost", "::1")

#: A wide table is scrolled by itself, and does not widen the page.
_CSS = (
    ".gradio-container{max-width:76rem!important;margin:0 auto!important}"
    ".gradio-container .samerge{contain:inline-size;padding:0 .2rem;--back:var(--body-background-fill)}"
    ".gradio-container .samerge h2{border-top:0;margin-top:.6rem}"
    ".gradio-container .samerge :is(h1,h2,h3){font-weight:600}"
    ".gradio-container .samerge ul{padding-left:1.2rem}"
)
#: Nothing from anywhere else, and no page of others around this one. Gradio's own code asks for the two `unsafe`.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'self'; form-action 'self'"
)
#: Routes of gradio that the page has no use for: uploads, and fetching addresses for whoever asks.
_CLOSED = ("/upload", "/proxy=", "/file=http:", "/file=https:")
#: What opens more than the page, where it is set.
_OPENING = ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_ROOT_PATH")

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Guard:
    """Refuses, before gradio sees them, requests that the page never makes.

    A request that another website's page makes says where that page is from (`Origin`), and is refused: whoever reaches
    the address may use it, but not a website that such a person looks at.

    Args:
        app: what is guarded.
        hosts: the names that this server answers to, so that no other page's name can be pointed at it; None for any.
        alone: whether only its own page may ask. Not on a Space, where what stands before it may change the names, and
            there is nothing of anyone's to reach.
    """

    def __init__(self, app: App, hosts: tuple[str, ...] | None, alone: bool) -> None:
        self.app, self.hosts, self.alone = app, hosts, alone

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        host, origin = (_authority(headers.get(name)) for name in (b"host", b"origin"))
        known = self.hosts is None or host[0] in self.hosts
        own = not self.alone or b"origin" not in headers or origin == host
        if not known or not own or any(part in scope["path"] for part in _CLOSED):
            await _refuse(send)
            return

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start" and self.hosts is not None:
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, answered)


def _authority(header: bytes | None) -> tuple[str | None, int | None]:
    """Name and port of a `Host` or an `Origin`; the port is None where it is that of the scheme, or there is none."""
    text = (header or b"").decode("latin-1")
    try:
        found = urlsplit(text if "://" in text else f"//{text}")
        return found.hostname, None if found.port in (80, 443) else found.port
    except ValueError:
        return None, None


async def _refuse(send: Any) -> None:
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"Not for this page.\n"})


def check_gradio(own_login: bool) -> None:
    """See that gradio is there, and make it and the Hub's library silent, before either is imported.

    Args:
        own_login: whether this machine's login of the Hub may be used. If not, its cache is not used either: there
            are private repositories in it, which the Hub's library hands out where the Hub refuses them.

    Raises:
        OptionError: gradio is not installed, or the Hub's library was imported before and would use the login.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in _OPENING:
        os.environ.pop(name, None)
    if not own_login:
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
        os.environ["HF_HUB_CACHE"] = _strangers_cache()
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise OptionError("the page needs gradio: pip install 'samerge[ui]'") from error
    from huggingface_hub import constants

    if not own_login and not (constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and _strangers_cache() == constants.HF_HUB_CACHE):
        raise OptionError(
            "huggingface_hub was imported before the page, and would use this machine's login and cache for every "
            "visitor; import samerge.ui and make the page first"
        )


@cache
def _strangers_cache() -> str:
    """A folder for what strangers have downloaded, of this process, and gone with it."""
    folder = tempfile.mkdtemp(prefix="samerge-hub-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def launch(page: gr.Blocks, host: str | None, port: int | None, wait: bool) -> str:
    """Serve a page.

    Args:
        page: what `build` made.
        host: the address to listen at; None as gradio has it, which on a Space is every address.
        port: the port; None for the first free one from 7860.
        wait: whether to go on only when the server has ended.

    Returns:
        The page's address.

    Raises:
        OptionError: the port is taken.
    """
    from gradio.themes import Default
    from starlette.middleware import Middleware

    hosts = (*LOOPBACK, host) if host in LOOPBACK else None
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=not wait,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size=1,
            css=_CSS,
            theme=Default(primary_hue="blue").set(
                # letters that can be read: gradio's own are fainter
                block_info_text_color="*neutral_600",
                block_info_text_color_dark="*neutral_300",
                button_primary_background_fill="*primary_600",
                button_primary_background_fill_hover="*primary_700",
            ),
            app_kwargs={"middleware": [Middleware(Guard, hosts=hosts, alone=host is not None)]},
        )
    except OSError as error:
        raise OptionError(f"--port {port or '7860'}: {error}; choose another") from error
    return str(address)


def strangers_page() -> gr.Blocks:
    """The page for a Space, where every visitor is a stranger: the Hub alone, without a login.

    Raises:
        OptionError: gradio is not installed, or the Hub's library was imported before.
    """
    check_gradio(own_login=False)
    from samerge.ui.page import build

    return build(Places())


@contextmanager
def served(places: Places, host: str, port: int | None) -> Iterator[str]:
    """The page, served as long as this lasts; gives its address. Its files for download go with it.

    Raises:
        OptionError: gradio is not installed, or the port is taken.
    """
    check_gradio(places.own_login)
    with tempfile.TemporaryDirectory(prefix="samerge-ui-") as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch
        from samerge.ui.page import build

        page = build(places)
        try:
            yield launch(page, host, port, wait=False)
        finally:
            page.close(verbose=False)


def until_interrupted() -> None:
    """Wait for Control-C."""
    stopped = threading.Event()
    while not stopped.wait(3600):
        pass
