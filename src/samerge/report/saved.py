"""What samerge wrote earlier, pushed to the Hub as a merge pushes it: without the names of local folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors.torch import load_file
from typing_extensions import Unpack

from samerge.adapters.formats.header import RECORD_FIELD
from samerge.adapters.formats.table import named
from samerge.adapters.writer import write_file, write_text
from samerge.errors import AdapterError, OptionError
from samerge.report.card import model_card
from samerge.report.reading import read_record
from samerge.report.uploading import upload
from samerge.weights.hub import RECORD_NAME
from samerge.weights.pushing import Upload
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin


def push_saved(path: str | Path, repo_id: str, **how: Unpack[Upload]) -> str:
    """Upload an adapter or a model that samerge wrote earlier, as `push_to_hub` of its result would have.

    Only the files that its record names are uploaded; the record's local folders are told by their last part.

    Args:
        path: the folder, or the file.
        repo_id: `user/name`; made if it is not there.
        **how: `token`, `private`, `revision`, `commit_message` and `create_pr`; see `Upload`.

    Returns:
        The URL of the repository or pull request.

    Raises:
        AdapterError: samerge did not write it, or a file of it is gone.
        OptionError: it is a GGUF file.
        HubError: the Hub refused; says what to do.
    """
    path = Path(path).expanduser()
    name = path.stem if path.is_file() else path.name
    how = {"commit_message": "Upload what samerge made", **how}
    return upload(lambda folder: _copied(path, folder), name, repo_id, **how)


def _copied(path: Path, folder: Path) -> Path:
    """What is to be uploaded, in a folder of its own."""
    record = read_record(path)
    origin = Origin(f"pushing {path}", AdapterError)
    folder.mkdir()
    if path.is_dir():
        for name in (*(record.files or {}), RECORD_NAME):
            if name != Path(name).name or not (path / name).is_file():
                raise origin.refusal(f"its record names {name!r}, which is not in it; push what samerge wrote, whole")
            _placed(path / name, folder / name)
        return folder
    if path.suffix == ".gguf":
        raise OptionError(
            f"pushing {path}: its record, in its header, may name folders of this machine; write it as it is with "
            f"`hf upload USER/NAME {path.name}` where that does not matter"
        )
    format = named(record.output.format or "kohya")
    header = {key: text for key, text in TensorFile(path, origin).metadata.items() if key != RECORD_FIELD}
    write_file(folder / (format.file or path.name), load_file(path), header)
    write_text(folder, record.json(), model_card(record))
    return folder


def _placed(file: Path, target: Path) -> None:
    """A file of weights as a link, where that can be: it may be large, and is not written to. Others as copies."""
    if file.suffix == ".safetensors":
        try:
            os.link(file, target)
            return
        except OSError:
            pass
    shutil.copyfile(file, target)
