"""What the base is run on: token numbers by its tokenizer, or drawn at random."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError, OptionError, first_line
from samerge.options.calibration import Input, is_input
from samerge.weights.hub import resolve_base
from samerge.weights.offloaded import execution_device

#: Texts of a file or list that are run, and the tokens of each.
MOST_TEXTS, MOST_TOKENS = 256, 256
#: Rows of tokens drawn at random, and their length: measured, four times as many give the same merge.
ROWS, LENGTH = 4, 128
#: What a tokenizer's own files are called.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "sentencepiece*.model", "*.tiktoken")
#: Special places that some models keep before the first position.
_RESERVED = 4


def read_texts(file: Path) -> list[Input]:
    """The texts of a JSON Lines file, or the messages of conversations, the first `MOST_TEXTS` of them.

    Args:
        file: each line is `{"text": "..."}` or `{"messages": [...]}`; what else it has is not read.

    Raises:
        OptionError: the file cannot be read, has none, or a line is neither.
    """
    found: list[Input] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            written = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            for number, line in islice(written, MOST_TEXTS):
                found.append(_text_of(line, f"calibration: line {number} of {file}"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"calibration: {file} cannot be read: {error}") from error
    if not found:
        raise OptionError(f'calibration: {file} has no line; give one {{"text": "..."}} for each input')
    return found


def _text_of(line: str, where: str) -> Input:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OptionError(f'{where} is no JSON ({error}); write {{"text": "..."}}') from error
    given: dict[str, Any] = entry if isinstance(entry, dict) else {}
    for found, kind in ((given.get("text"), str), (given.get("messages"), list)):
        if isinstance(found, kind) and is_input(found):
            return found
    raise OptionError(f'{where} has neither a text nor messages; write {{"text": "..."}} or {{"messages": [...]}}')


def tokenised(texts: Sequence[Input], tokenizer: Any, longest: int) -> list[Tensor]:
    """Token numbers of each text, (1, tokens).

    Args:
        texts: texts, or lists of messages, which the tokenizer's chat template makes texts of.
        tokenizer: of transformers.
        longest: how many tokens of a text at most.

    Raises:
        OptionError: there is no chat template for messages, or it refuses them; or there is no token.
    """
    found = []
    for number, given in enumerate(texts, 1):
        written = isinstance(given, str)
        try:
            # a template writes the special tokens itself
            text = given if written else tokenizer.apply_chat_template(given, tokenize=False)
            made = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt", add_special_tokens=written)
        except Exception as error:  # a template is the tokenizer's own program: it raises what it likes
            what = "tokenizer does not take" if written else "chat template does not take the messages of"
            raise OptionError(
                f"calibration: the base's {what} input {number} ({first_line(error)}); give other texts"
            ) from error
        ids = made["input_ids"]
        if ids.numel():
            found.append(ids)
    if not found:
        raise OptionError("calibration: the base's tokenizer makes no token of the texts; give others")
    return found


def embeddings_of(model: nn.Module) -> nn.Module:
    """The token embeddings of a model.

    Raises:
        OptionError: it takes no tokens.
    """
    try:
        found: Any = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        found = None
    if found is None or getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise OptionError(
            f"calibration: {type(model).__name__} does not take any tokens; in Python give a function that runs the "
            f"model on inputs of its kind, and the loaded model as the base"
        )
    return found  # type: ignore[no-any-return]


def longest_of(model: nn.Module, most: int) -> int:
    """How many tokens a model takes at once, `most` at most."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    places = getattr(text, "max_position_embeddings", None)
    return most if not isinstance(places, int) else max(1, min(most, places - _RESERVED))


def drawn(model: nn.Module) -> list[Tensor]:
    """Rows of tokens drawn at random from the vocabulary, (1, tokens) each; the same ones each time.

    Raises:
        OptionError: the model does not take tokens.
    """
    weight: Any = embeddings_of(model).weight
    length = longest_of(model, LENGTH)
    ids = torch.randint(0, weight.shape[0], (ROWS, length), generator=torch.Generator().manual_seed(0))
    return [row[None] for row in ids]


def on_ids(model: nn.Module, rows: Sequence[Tensor], advance: Callable[[int], None], head: bool) -> None:
    """Run a model on token numbers, row by row, so that nothing is padded.

    Args:
        model: of transformers; an encoder-decoder gets the same tokens on both sides.
        rows: (1, tokens) each.
        advance: called with 1 after each.
        head: whether what the head takes is of interest; else it is given one position a row, as over a large
            vocabulary it takes longer than all layers.
    """
    embeddings = embeddings_of(model)
    weight: Any = embeddings.weight
    device = execution_device(embeddings) or (torch.device("cpu") if weight.is_meta else weight.device)
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    short = not head and "logits_to_keep" in signature(model.forward).parameters
    few: dict[str, Any] = {"logits_to_keep": 1} if short else {}
    for ids in rows:
        placed = ids.to(device)
        more: dict[str, Any] = {"decoder_input_ids": placed} if both else {}
        model(input_ids=placed, attention_mask=torch.ones_like(placed), **more, **few)
        advance(1)


def tokenizer_of(model: Any, base: object) -> Any:
    """The tokenizer beside a base.

    Args:
        model: the base as it runs.
        base: what it was given as: a folder or a Hub id, of which the tokenizer is fetched; else the model says where
            it came from.

    Raises:
        BaseModelError: there is none that can be read.
        HubError: it could not be downloaded.
    """
    from transformers import AutoTokenizer

    given = base if isinstance(base, (str, os.PathLike)) else getattr(model, "name_or_path", "") or ""
    told = f"calibration: the tokenizer of the base {str(given)!r} cannot be read"
    way = "give a base with its tokenizer beside it; calibration='random' needs none"
    if not str(given):
        raise BaseModelError(f"{told} (the model does not say where it came from); {way}")
    place = resolve_base(str(given), companions=True)
    # without its files some kinds are made of the configuration alone, and know no word
    if not any(file for pattern in _TOKENIZERS for file in place.glob(pattern)):
        raise BaseModelError(f"{told} (there is none in {place}); {way}")
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise BaseModelError(f"{told} ({first_line(error)}); {way}") from error
