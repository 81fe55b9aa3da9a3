"""What the base is run on: token numbers by its tokenizer, or drawn at random."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError, OptionError
from samerge.weights import FolderSource, WeightSource

#: Texts of a file or list that are run, and the tokens of each.
MOST_TEXTS, MOST_TOKENS = 256, 256
#: Rows of tokens drawn at random, and their length: measured, four times as many give the same merge.
ROWS, LENGTH = 4, 128
#: Special places that some models keep before the first position.
_RESERVED = 4


def read_texts(file: Path) -> list[str | list[Any]]:
    """The texts of a JSON Lines file, or the messages of conversations, the first `MOST_TEXTS` of them.

    Args:
        file: each line is `{"text": "..."}` or `{"messages": [...]}`; what else it has is not read.

    Raises:
        OptionError: the file cannot be read, has none, or a line is neither.
    """
    found: list[str | list[Any]] = []
    try:
        with file.open(encoding="utf-8") as lines:
            written = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            for number, line in islice(written, MOST_TEXTS):
                found.append(_text_of(line, f"calibration: line {number} of {file}"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"calibration: {file} cannot be read: {error}") from error
    if not found:
        raise OptionError(f'calibration: {file} has no line; give one {{"text": "..."}} for each input')
    return found


def _text_of(line: str, where: str) -> str | list[Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OptionError(f'{where} is no JSON ({error}); write {{"text": "..."}}') from error
    given = entry if isinstance(entry, dict) else {}
    text, messages = given.get("text"), given.get("messages")
    if isinstance(text, str) and text.strip():
        return text
    if isinstance(messages, list) and messages:
        return messages
    raise OptionError(f'{where} has neither a text nor messages; write {{"text": "..."}} or {{"messages": [...]}}')


def tokenised(texts: Sequence[str | list[Any]], tokenizer: Any) -> list[Tensor]:
    """Token numbers of each text, (1, tokens).

    Args:
        texts: texts, or lists of messages, which the tokenizer's chat template makes texts of.
        tokenizer: of transformers.

    Raises:
        OptionError: there is no chat template for messages, or it refuses them.
    """
    found = []
    for text in texts:
        if not isinstance(text, str):
            try:
                text = tokenizer.apply_chat_template(text, tokenize=False)
            except Exception as error:  # a template is the tokenizer's own program: it raises what it likes
                raise OptionError(
                    f"calibration: the base's chat template does not take the messages ({error}); give texts"
                ) from error
        ids = tokenizer(text, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")["input_ids"]
        if ids.numel():
            found.append(ids)
    return found


def drawn(model: nn.Module) -> list[Tensor]:
    """Rows of tokens drawn at random from the vocabulary, (1, tokens) each; the same ones each time.

    Raises:
        OptionError: the model does not take token numbers.
    """
    config: Any = getattr(model, "config", None)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    count = getattr(embeddings, "num_embeddings", None)
    if getattr(model, "main_input_name", "input_ids") != "input_ids" or count is None:
        raise OptionError(
            f"calibration='random' draws token numbers, and {type(model).__name__} does not take any; in Python give "
            f"calibration a function that runs the model on inputs of its kind"
        )
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(text, "max_position_embeddings", None) or LENGTH + _RESERVED
    length = max(1, min(LENGTH, int(longest) - _RESERVED))
    ids = torch.randint(0, count, (ROWS, length), generator=torch.Generator().manual_seed(0))
    return [row[None] for row in ids]


def on_ids(model: nn.Module, rows: Sequence[Tensor], advance: Callable[[int], None]) -> None:
    """Run a model on token numbers, row by row, so that nothing is padded.

    Args:
        model: of transformers; an encoder-decoder gets the same tokens on both sides.
        rows: (1, tokens) each.
        advance: called with 1 after each.
    """
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    # no more logits than must be: of a large vocabulary they take longer than all layers
    few = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    for ids in rows:
        placed = ids.to(device)
        more: dict[str, Any] = {"decoder_input_ids": placed} if both else {}
        model(input_ids=placed, attention_mask=torch.ones_like(placed), **more, **few)
        advance(1)


def tokenizer_of(model: Any, source: WeightSource | None) -> Any:
    """The tokenizer beside a base.

    Args:
        model: the base as it runs.
        source: its weights; of a base in a folder its folder, else the model says where it came from.

    Raises:
        BaseModelError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    place = source.folder if isinstance(source, FolderSource) else getattr(model, "name_or_path", "") or ""
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BaseModelError(
            f"calibration: the tokenizer of the base {str(place)!r} cannot be read ({reason}); calibration='random' "
            f"needs none"
        ) from error
