"""What the site has beside the pages of this folder: the notebooks, and the files of the project's root.

Links between the two work in both places: on the site, and in a clone.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Any, config: Any) -> Any:
    """Add them."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for book in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = as_page(book)
        files.append(File.generated(config, f"notebooks/{book.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bring links to where their targets are on the site; files that it does not have are named and not linked."""
    inside = page.file.src_uri
    up = "../" * inside.count("/")

    def moved(found: re.Match[str]) -> str:
        text, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if inside in PAGES:
            path = path.removeprefix("docs/")
        elif path.startswith(up + "../"):
            path = up + path.removeprefix(up + "../")
        path = re.sub(r"(notebooks/\w+)\.ipynb$", r"\1.md", path)
        known = path.removeprefix(up) if up else path
        if (
            (ROOT / known).exists()
            and not known.startswith(("notebooks/", *PAGES))
            and not (ROOT / "docs" / known).exists()
        ):
            return text
        return f"[{text}]({path}{hash_}{anchor})"

    return re.sub(r"\[([^\]\[]*)\]\(((?!https?:|#|mailto:)[^)\s]+)\)", moved, markdown)


def as_page(book: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{book.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the code above draws]({name})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures
