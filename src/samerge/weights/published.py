"""What is published of a source beside its weights: its commit on the Hub, and its card on licence and use.

Cards are `README.md` with a YAML header, as the Hub has them; a stranger wrote them, so only plain short values are
taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from samerge.errors import AdapterError, SamergeError
from samerge.weights.untrusted import Origin, read_bytes

CARD_NAME = "README.md"
_MOST_BYTES = 1 << 20
_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]{0,95}")
_LINK = re.compile(r"[!-~]{1,300}")
#: A field at the left edge, its value in double or single quotes or bare, and perhaps a comment.
_FIELD = re.compile(
    r"""^(license|license_name|license_link|pipeline_tag):[ \t]+(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'#][^\s]*))"""
    r"[ \t]*(?:[ \t]#[^\n]*)?\r?$",
    re.MULTILINE,
)
#: Values that say no word, in YAML or in plain words.
_NOTHING = ("null", "none", "true", "false", "yes", "no", "unknown")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Card:
    """What a card says that a merge can hand on.

    Args:
        license: as the Hub spells it, such as "apache-2.0"; "other" goes with the next two.
        license_name: of a licence that the Hub has no name for.
        license_link: where that is.
        pipeline_tag: what the model is for, such as "text-generation".
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    pipeline_tag: str | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and not _FORM[one.name](value):
                raise ValueError(f"{one.name} is {value[:60]!r}, not a word as cards have it")

    @property
    def terms(self) -> tuple[str, ...]:
        """The licence with its name and address where it has its own; nothing where it is not known."""
        return tuple(value for value in (self.license, self.license_name, self.license_link) if value)


def _is_word(value: str) -> bool:
    return _WORD.fullmatch(value) is not None


def _is_link(value: str) -> bool:
    return _LINK.fullmatch(value) is not None


_FORM: Mapping[str, Callable[[str], bool]] = {
    "license": _is_word,
    "license_name": _is_word,
    "license_link": _is_link,
    "pipeline_tag": _is_word,
}


@dataclass(frozen=True)
class Published:
    """What is published of a source.

    Args:
        revision: the commit on the Hub that was read; None for local files.
        card: what its card says; None where there is none, or where it says nothing of this.
        notes: what the user should know of how the card was read.
    """

    revision: str | None = None
    card: Card | None = None
    notes: tuple[str, ...] = ()


def published(path: Path, source: str, what: str) -> Published:
    """What is published of a source beside its weights.

    Args:
        path: its folder or file here.
        source: as the user gave it; what exists here is local.
        what: it, in messages: "the adapter 'math'".
    """
    local = Path(source).expanduser().exists()
    snapshot = None if local else next((one for one in (path, *path.parents) if _is_snapshot(one)), None)
    if snapshot is None and not path.is_dir():
        return Published()  # what lies beside a single file may be of anything
    card, notes = _card_of((snapshot or path) / CARD_NAME, what)
    return Published(snapshot.name if snapshot else None, card, notes)


def _is_snapshot(folder: Path) -> bool:
    """Whether a folder is a commit in the cache of huggingface_hub, or one that a test of ours made alike."""
    return folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) is not None


def _card_of(file: Path, what: str) -> tuple[Card | None, tuple[str, ...]]:
    """What a card says, and what to tell of one that cannot be read: it is no part of the weights, so nothing fails."""
    if not os.path.lexists(file):
        return None, ()
    try:
        text = read_bytes(file, Origin(f"reading the card of {what}", AdapterError), _MOST_BYTES).decode("utf-8")
    except (SamergeError, ValueError) as error:
        return None, (f"the card of {what} ({CARD_NAME}) cannot be read, so its licence is not known: {error}",)
    header = _HEADER.match(text)
    said = _said(header[1]) if header else {}
    good = {one.name: said.get(one.name) for one in fields(Card)}
    if not good["license"]:
        good["license_name"] = good["license_link"] = None
    card = Card(**good)
    return (card if card != Card() else None), ()


def _said(header: str) -> dict[str, str]:
    """The fields that stand on a line of their own with a plain or quoted word, once.

    A whole parser of YAML would build whatever a stranger's text asks for; these fields need none. A list of licences,
    and whatever else is no word, cannot be handed on anyway.

    Example:
        >>> _said("license: mit  # ours\\ntags:\\n  license: x\\npipeline_tag: 'fill-mask'\\n")
        {'license': 'mit', 'pipeline_tag': 'fill-mask'}
    """
    found: dict[str, list[str]] = {}
    for name, double, single, bare in _FIELD.findall(header):
        found.setdefault(name, []).append(double or single or bare)
    once = {name: own[0] for name, own in found.items() if len(own) == 1}
    return {name: value for name, value in once.items() if value.lower() not in _NOTHING and _FORM[name](value)}
