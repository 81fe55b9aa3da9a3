"""Run the notebooks of this folder and keep what they show: `make notebooks`.

python notebooks/run.py                # all of them, in place
python notebooks/run.py --check        # only whether they run
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def ran(path: Path) -> Any:
    """A notebook with its outputs, without what differs from run to run or tells of this machine."""
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    book.metadata = {name: book.metadata[name] for name in ("kernelspec",) if name in book.metadata}
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
    return book


def _plain(output: Any) -> Any:
    """An output, its picture alone where it is one."""
    output.metadata = {}
    data = output.get("data")
    if data and "image/png" in data:
        output["data"] = {"image/png": data["image/png"]}
    elif data and "text/html" in data:  # a page for a notebook; elsewhere the text
        output["data"] = {"text/plain": _clean(data["text/plain"])}
    elif output.get("name") == "stdout":
        output["text"] = _clean(output["text"])
    elif data and "text/plain" in data:
        output["data"] = {"text/plain": _clean(data["text/plain"])}
    return output


def _clean(text: str) -> str:
    """Without colours, folders of this machine, and addresses in memory."""
    return re.sub(r"\x1b\[[0-9;]*m| at 0x[0-9a-f]+", "", text.replace(str(HERE.parent), "."))


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    chosen = parser.parse_args()
    for path in sorted(HERE.glob("*.ipynb")):
        book = ran(path)
        if not chosen.check:
            nbformat.write(book, path)
        print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in book.cells)} cells")


if __name__ == "__main__":
    main()
