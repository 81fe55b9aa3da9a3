"""`calibration`: what the base is run on, so that a merge knows what its modules take."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samerge.errors import OptionError
from samerge.options.kinds import Kind

#: Tokens drawn at random: the word for it.
RANDOM = "random"
_ENDING = ".jsonl"
#: What a record says of inputs that are in no file.
IN_MEMORY = "inputs in memory"


#: A text, or the messages of a conversation, of which the base's chat template makes one.
Input = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Calibration:
    """What the base is run on.

    Args:
        file: a JSON Lines file of texts.
        texts: texts, or messages.
        run: called with the model; runs it.

    Without any of them: tokens drawn at random.
    """

    file: Path | None = None
    texts: tuple[Input, ...] = ()
    run: Callable[[Any], Any] | None = None

    def plain(self) -> str:
        """As the record has it.

        Example:
            >>> Calibration().plain(), Calibration(file=Path("texts.jsonl")).plain(), Calibration(texts=("a",)).plain()
            ('random', 'texts.jsonl', 'inputs in memory')
        """
        if self.texts or self.run is not None:
            return IN_MEMORY
        return RANDOM if self.file is None else str(self.file)


def is_input(value: object) -> bool:
    """Whether something is a text that is not blank, or a list of messages.

    Example:
        >>> is_input("a"), is_input(" "), is_input([{"role": "user", "content": "a"}]), is_input([]), is_input(["a"])
        (True, False, True, False, False)
    """
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Mapping) for one in value)


def calibration() -> Kind:
    """ "random", a JSON Lines file, a list of texts or messages, or a function that runs the model."""

    def read(name: str, value: Any) -> Calibration:
        if isinstance(value, Calibration):
            return value
        if value == RANDOM:
            return Calibration()
        if isinstance(value, (str, os.PathLike)):
            if not str(value).lower().endswith(_ENDING):
                raise OptionError(
                    f"{name}={str(value)!r} is not known; give {RANDOM}, or a file {_ENDING} with a line "
                    f'{{"text": "..."}} for each input'
                )
            return Calibration(file=Path(value))
        if callable(value):
            return Calibration(run=value)
        if isinstance(value, Sequence) and value and all(is_input(one) for one in value):
            return Calibration(texts=tuple(value))
        raise OptionError(
            f"{name}={type(value).__name__} is not known; give {RANDOM!r}, a file {_ENDING} of texts or messages, a "
            f"list of texts that are not empty or of conversations, each a list of messages, or a function that runs "
            f"the model it is given"
        )

    messages = {"type": "array", "items": {"type": "object"}, "minItems": 1}
    texts = {"type": "array", "items": {"anyOf": [{"type": "string", "pattern": r"\S"}, messages]}, "minItems": 1}
    schema = {"anyOf": [{"enum": [RANDOM]}, {"type": "string", "pattern": rf"\{_ENDING}$"}, texts]}
    annotation = "str | os.PathLike[str] | Sequence[str | Sequence[Mapping[str, Any]]] | Callable[[Any], Any]"
    return Kind(read, annotation, f"{RANDOM}|FILE{_ENDING}", (RANDOM,), schema=schema)


HELP = (
    "Run the base once, and merge in the metric of what each module takes there: on tokens drawn at random, on the "
    "texts of a file, in Python also on a list of texts or conversations, or by a function that runs it. No labels."
)
