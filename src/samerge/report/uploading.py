"""A result on the Hub: written to a folder for this alone, without the names of local folders, and uploaded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from typing_extensions import Unpack

from samerge.adapters.writer import CARD_NAME, write_text
from samerge.report.loading import ADAPTER, MODEL
from samerge.report.reading import read_record
from samerge.report.sharing import concealed, known_local, last_part, on_hub
from samerge.weights import pushing
from samerge.weights.hub import CONFIG_NAME

#: What the base is called in an adapter's configuration, by PEFT and by MLX.
_BASE = ("base_model_name_or_path", "model")


def upload(save: Callable[[Path], Path], name: str, repo_id: str, **how: Unpack[pushing.Upload]) -> str:
    """Push what `save` writes.

    Args:
        save: writes a folder at a path that is free, and returns it.
        name: of the folder, as messages have it.
        repo_id: `user/name`, or `name` for a repository of the user who is logged in.
        **how: see `Upload`.

    Returns:
        The URL of the repository or pull request.

    Raises:
        OptionError: `create_pr` comes together with `revision`.
        HubError: the Hub refused; says what to do.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = save(Path(parent) / name)
        return pushing.push_folder(folder, repo_id, ready=lambda full_id: make_public(folder, full_id), **how)


def make_public(folder: Path, repo_id: str) -> None:
    """Name local folders by their last part, as the card does, and the repository where the card says how to load it.

    Args:
        folder: made for uploading, and no user's own.
        repo_id: where it will be.
    """
    record = read_record(folder)
    _conceal_base(folder / CONFIG_NAME, known_local(record))
    card = (folder / CARD_NAME).read_text(encoding="utf-8")
    write_text(folder, concealed(record).json(), card.replace(ADAPTER, repo_id).replace(MODEL, repo_id))


def _conceal_base(file: Path, local: Collection[str] | None) -> None:
    """An adapter's configuration names a base on the machine of whoever trained it, which is of no use elsewhere."""
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    named = {key: config[key] for key in _BASE if config.get(key) and not on_hub(config[key], local)}
    if named:
        config |= {key: last_part(base) for key, base in named.items()}
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8", newline="\n")
