"""Chromium without a window, driven through a pair of pipes: its own protocol, no driver and no package.

https://chromedevtools.github.io/devtools-protocol/ ; messages are JSON that ends with a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: Seconds that anything may take; the machine may be slow, and have other work.
PATIENCE = 120.0

KEYS = {"Enter": 13, "Tab": 9, "Escape": 27}


class Tab:
    """One tab."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._rest = b""
        self._count = 0
        self._session = ""
        self.requests: list[str] = []
        self.console: list[str] = []

    def open(self, downloads: Path) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{part}.enable")
        session, self._session = self._session, ""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self._session = session

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._count:
                assert "error" not in found, (method, found["error"])
                result: dict[str, Any] = found["result"]
                return result
            self._note(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 16)
            assert part, "Chromium has gone"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page asked of the network, and what it complained of."""
        told = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.console.append(told["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.console.append(json.dumps(told["exceptionDetails"]))

    def size(self, width: int, height: int = 1000, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float | None = None) -> Any:
        """Wait until an expression is true; what it is then. An element of the page is an empty object."""
        end = time.monotonic() + (seconds or PATIENCE)
        while (found := self.value(expression)) in (None, False, 0, "", []):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText")[-3000:], self.console)
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        """Click, as with a mouse, in the middle of what a selector finds, once it can be seen and stands still."""
        quoted = json.dumps(selector)
        self.wait(f"(n => n && n.getBoundingClientRect().height > 0 && !n.disabled)(document.querySelector({quoted}))")
        before = None
        while before != (
            place := self.value(
                f"(n => {{ n.scrollIntoView({{block: 'center', behavior: 'instant'}}); "
                f"const b = n.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})"
                f"(document.querySelector({quoted}))"
            )
        ):
            before = place
            time.sleep(0.3)
        x, y = place
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str, *keys: str) -> None:
        """Click into a field, replace what it holds, and press keys."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select?.()")
        self.send("Input.insertText", text=text)
        for key in keys:
            for kind in ("rawKeyDown", "keyUp"):
                self.send(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS.get(key, 0)
                )

    def picture(self, file: Path) -> None:
        """The whole page as an image."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser with one tab, which keeps what it downloads and its profile in a folder."""
    downloads, profile = folder / "downloads", folder / "profile"
    downloads.mkdir(parents=True)
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    words = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"),
        *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
        f"--user-data-dir={profile}",
    ]

    def handed_over() -> None:  # in the child: the browser takes its two pipes at 3 and 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]
        for number, end in enumerate(ends, 3):
            os.dup2(end, number)

    with (
        (folder / "chromium.log").open("wb") as log,
        subprocess.Popen(words, pass_fds=(3, 4), preexec_fn=handed_over, stdout=log, stderr=log) as process,
    ):
        os.close(to_read)
        os.close(from_write)
        tab = Tab(from_read, to_write)
        try:
            tab.open(downloads)
            yield tab
        finally:
            with contextlib.suppress(OSError, AssertionError):
                tab._session = ""
                tab.send("Browser.close")
            os.close(to_write)
            os.close(from_read)
            process.terminate()
