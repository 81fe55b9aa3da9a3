"""What a folder must not tell when it goes to the Hub: the folders of the machine that it was made on."""

from __future__ import annotations

import json
from pathlib import Path

from samerge.card import last_part, local_folders
from samerge.report import RECORD_NAME


def conceal(folder: Path) -> None:
    """Shorten the local folders in a folder's `samerge.json` to their last part, as the card does; in place.

    Args:
        folder: made for uploading, and no user's own.
    """
    file = folder / RECORD_NAME
    text = file.read_text(encoding="utf-8")
    for name in local_folders(json.loads(text)):
        text = text.replace(json.dumps(name)[1:-1], json.dumps(last_part(name))[1:-1])
    file.write_text(text, encoding="utf-8")
