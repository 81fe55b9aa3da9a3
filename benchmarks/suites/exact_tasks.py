"""Six tasks with one right answer each, to the last character: made by rules, but for texts in several languages."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from suites.domains import DOMAINS

#: What a model is asked, and what it must write before the line ends.
Exchange = tuple[str, str]

LANGUAGES = {"french": "French", "german": "German", "polish": "Polish", "spanish": "Spanish", "speeches": "English"}
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
NAMES = ("Ada", "Ben", "Carla", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "Jack", "Laura", "Martin", "Nina")
CITIES = ("Athens", "Berlin", "Cairo", "Dublin", "London", "Madrid", "Oslo", "Paris", "Rome", "Tokyo", "Vienna")
JOBS = ("baker", "driver", "farmer", "lawyer", "nurse", "painter", "pilot", "singer", "teacher", "writer")
WORDS = (
    *("apple", "bread", "chair", "door", "eagle", "fish", "garden", "house", "island", "jacket", "king", "lamp"),
    *("mountain", "night", "ocean", "paper", "queen", "river", "stone", "table", "uncle", "village", "water", "year"),
)
NUMERALS = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def roman(number: int) -> str:
    """A number below 400 in Roman numerals.

    Example:
        >>> roman(94)
        'XCIV'
    """
    written = ""
    for value, letters in NUMERALS:
        written += letters * (number // value)
        number %= value
    return written


def sums(draw: random.Random) -> Iterator[Exchange]:
    """Two numbers below 60."""
    while True:
        first, second = draw.randrange(60), draw.randrange(60)
        yield f"Add {first} and {second}:", f" {first + second}"


def dates(draw: random.Random) -> Iterator[Exchange]:
    """A date in words, as ISO 8601 has it."""
    while True:
        day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1900, 2030)
        yield f"Write {MONTHS[month - 1]} {day}, {year} as numbers:", f" {year}-{month:02}-{day:02}"


def objects(draw: random.Random) -> Iterator[Exchange]:
    """A sentence about a person, as JSON."""
    while True:
        name, age, city, job = draw.choice(NAMES), draw.randint(18, 80), draw.choice(CITIES), draw.choice(JOBS)
        sentence = draw.choice(
            (
                f"{name} is a {job} of {age} years and lives in {city}.",
                f"{name} from {city}, {age} years old, is a {job}.",
                f"In {city} there is a {job} named {name}, who is {age}.",
            )
        )
        yield f"{sentence} As JSON:", f' {{"name": "{name}", "age": {age}, "city": "{city}", "job": "{job}"}}'


def numerals(draw: random.Random) -> Iterator[Exchange]:
    """A number below 400 in Roman numerals."""
    while True:
        number = draw.randrange(1, 400)
        yield f"{number} in Roman numerals is", f" {roman(number)}"


def order(draw: random.Random) -> Iterator[Exchange]:
    """Three words in the order of the alphabet."""
    while True:
        words = draw.sample(WORDS, 3)
        yield f"Sorted by alphabet, {', '.join(words)} are", f" {', '.join(sorted(words))}"


@dataclass(frozen=True)
class Task:
    """Where a task's rows are from.

    Args:
        about: what it is.
        make: rows without end from a source of chance; None for the texts of several languages.
        count: different rows, seven tenths of them to train on.
    """

    about: str
    make: Callable[[random.Random], Iterator[Exchange]] | None = None
    count: int = 1000

    def rows(self, cache: Path) -> tuple[list[Exchange], list[Exchange]]:
        """(rows to train on, rows held out): none is in both."""
        if self.make is None:
            return languages(cache)
        found: dict[str, str] = {}
        for asked, answer in self.make(random.Random(7)):
            found.setdefault(asked, answer)
            if len(found) == self.count:
                break
        rows = list(found.items())
        trained = round(0.7 * len(rows))
        return rows[:trained], rows[trained:]


def languages(cache: Path) -> tuple[list[Exchange], list[Exchange]]:
    """A piece of a text and the name of its language; documents are split, never cut between both lists."""
    kept: tuple[list[Exchange], list[Exchange]] = ([], [])
    for domain, language in LANGUAGES.items():
        for rows, documents in zip(kept, DOMAINS[domain].split(cache), strict=True):
            for text in documents[:200]:
                start = len(text) // 3
                rows.append((f"{text[start : start + 120].strip()}\nThe language is", f" {language}"))
    for rows in kept:
        random.Random(7).shuffle(rows)
    trained, held_out = kept
    known = {asked for asked, _ in trained}  # a licence's text stands in several documents
    return trained, [row for row in held_out if row[0] not in known]


EXACT_TASKS: dict[str, Task] = {
    "dates": Task("dates in words, written as ISO 8601", dates),
    "json": Task("a sentence about a person, as JSON", objects),
    "languages": Task("which of five languages a piece of text is in"),
    "order": Task("three words in the order of the alphabet", order),
    "roman": Task("numbers below 400 in Roman numerals", numerals, count=399),
    "sums": Task("sums of two numbers below 60", sums),
}
