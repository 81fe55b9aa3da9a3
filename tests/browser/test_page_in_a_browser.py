"""The page of a report in a real browser: `make test-browser`. Chromium alone, no driver.

Each page is put into frames of 400 and 1280 pixels beside a probe, which looks at what the browser made of it and
leaves what it found in the document; `chromium --dump-dom` prints that.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from report.test_page import record_of

from samerge.report.page.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"),
]
WIDTHS = (400, 1280)

#: In each frame: what is wider than it, letters too faint to read, what the keyboard reaches, what was asked of the
#: network, and whether a script of the page's own ran.
PROBE = """
const seen = (node) => { const b = node.getBoundingClientRect(); return b.width > 1 && b.height > 1; };
const parts = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
const light = (colour) => {
  const [r, g, b] = colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = (node, win) => {
  for (; node; node = node.parentElement) {
    const colour = parts(win.getComputedStyle(node).backgroundColor);
    if (colour[3] > 0) return colour;
  }
  return [255, 255, 255, 1];
};
const look = (frame) => {
  const win = frame.contentWindow, doc = frame.contentDocument, body = doc.body;
  for (const folded of body.querySelectorAll('details')) folded.open = true;
  const wide = doc.documentElement.scrollWidth - win.innerWidth;
  const faint = [];
  let letters = 0;
  for (const node of body.querySelectorAll('*')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !seen(node) || node.closest('title,desc')) continue;
    const style = win.getComputedStyle(node);
    const front = parts(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(node, win))].sort((x, y) => y - x);
    letters += 1;
    if ((a + .05) / (b + .05) < 4.5) faint.push(node.tagName + ': ' + node.textContent.slice(0, 30));
  }
  const reached = [...body.querySelectorAll('a[href],summary,[tabindex="0"]')];
  const unseen = reached.filter(node => { node.focus(); return doc.activeElement !== node || !seen(node); });
  const skip = body.querySelector('.skip');
  skip.blur();
  const hidden = skip.getBoundingClientRect().right <= 0;
  skip.focus();
  const shown = skip.getBoundingClientRect().left >= 0;
  const stuck = [...body.querySelectorAll('.scroll')].filter(n => n.scrollWidth > n.clientWidth + 1)
    .every(n => {
      n.scrollLeft = 40;
      return n.scrollLeft > 0 && n.querySelector('tbody th').getBoundingClientRect().left >= 0;
    });
  const small = [...body.querySelectorAll('svg text')].filter(n => n.getBoundingClientRect().height < 9).length;
  const fetched = win.performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'));
  return {wide, faint: [...new Set(faint)].slice(0, 5), letters, unseen: unseen.map(n => n.outerHTML.slice(0, 80)),
    hidden, shown, stuck, small, fetched, reached: reached.length, ran: Boolean(win.ran),
    back: behind(body.querySelector('main'), win).slice(0, 3)};
};
window.onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll('iframe')) found[frame.width] = look(frame);
  document.getElementById('found').textContent = JSON.stringify(found);
};
"""


def browsed(folder: Path, text: str, dark: bool) -> dict[str, dict]:
    """What the probe finds of a page at each width."""
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(text)}"></iframe>'
        for width in WIDTHS
    )
    file = folder / "probe.html"
    file.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre>{frames}<script>{PROBE}</script>', encoding="utf-8"
    )
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"),
            *(f"--user-data-dir={folder / 'profile'}", "--disable-background-networking", "--no-first-run"),
            *(f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000"),
            *("--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told: dict[str, dict] = json.loads(html.unescape(found[1]))
    return told


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("count", [2, 64])
def test_readable_at_every_width_by_eye_and_by_keyboard(tmp_path: Path, count: int, dark: bool) -> None:
    names = ["<script>window.ran = 1</script>", "a-name-of-an-adapter-that-is-longer-than-a-telephone-is-wide" * 2]
    record = record_of([*names, *(f"adapter-{n}" for n in range(count - 2))], warnings=("a warning of " + "w" * 300,))
    layers = {f"model.layers.{n}.q_proj": layer for n, layer in enumerate(list(record.layers.values()) * 10)}
    found = browsed(tmp_path, page(replace(record, layers=layers), "merged"), dark)
    assert set(found) == {str(width) for width in WIDTHS}
    for width, one in found.items():
        assert one["wide"] <= 0, f"the page itself scrolls sideways at {width}"
        assert one["faint"] == [], width
        assert one["letters"] > 100
        assert one["unseen"] == [], width
        assert one["reached"] > 15
        assert one["hidden"], "the skip link is in the way"
        assert one["shown"], "the skip link does not show when it has the focus"
        assert one["stuck"], "a table does not scroll, or its names do not stay"
        assert one["small"] == 0, "letters in a picture are too small to read"
        assert one["fetched"] == []
        assert not one["ran"]
        assert (sum(one["back"]) < 200) == dark


def test_the_probe_sees_what_is_wrong(tmp_path: Path) -> None:
    """The same page, spoilt: what passes above would not pass by itself."""
    text = page(record_of(["a", "b"]), "merged")
    worse = "h1{color:#ddd!important;width:3000px}nav a{display:none!important}.skip{left:0!important}"
    worse += "svg{width:99px!important}"
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    text = text.replace("</style>", f"{worse}</style><script>window.ran = 1</script>", 1)
    for one in browsed(tmp_path, text, dark=False).values():
        assert one["wide"] > 0
        assert [told for told in one["faint"] if told.startswith("H1")]
        assert one["unseen"]
        assert not one["hidden"]
        assert one["small"]
        assert one["ran"]
