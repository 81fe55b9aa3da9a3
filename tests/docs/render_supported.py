"""docs/supported.md and docs/api.md, from samerge's own tables: `python tests/docs/render_supported.py` writes them."""

from __future__ import annotations

from pathlib import Path

import samerge
from samerge.adapters.formats.gguf_names import ARCHITECTURES
from samerge.adapters.formats.table import FORMATS
from samerge.adapters.servers import VERSIONS
from samerge.graph.decoders import DECODERS
from samerge.graph.encoders import ENCODER_DECODERS, ENCODERS
from samerge.graph.vision import VISION
from samerge.methods.registry import _files, available_methods, summaries
from samerge.weights.quantised import FORMATS as QUANTISED

DOCS = Path(__file__).resolve().parents[2] / "docs"
MADE = "<!-- Rendered from samerge's tables by tests/docs/render_supported.py. -->"


def listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))  # type: ignore[call-overload]


def supported() -> str:
    """`docs/supported.md`."""
    kinds = {
        "language models": DECODERS,
        "encoders": ENCODERS,
        "encoder-decoders": ENCODER_DECODERS,
        "of pictures, and of pictures and text": VISION,
    }
    families = {kind: {t for row in rows for t in row.model_types} for kind, rows in kinds.items()}
    own = _files()
    lines = [
        MADE,
        "",
        "# What is supported",
        "",
        "These lists are written from the program's own tables. What stands behind each: [adapters](adapters.md),",
        "[formats](formats.md), [bases](bases.md), [methods](methods.md).",
        "",
        f"## Families of models: {sum(map(len, families.values()))}",
        "",
        "What the `model_type` of a base's `config.json` may be for the ranking by saliency to follow how its layers",
        "feed one another. Any other model is merged, too: ranked by size (`--method even`, and all methods that read",
        "no base), or layer by layer (`--connectivity local`).",
        "",
        *(f"- **{kind}** ({len(types)}): {listed(types)}" for kind, types in families.items()),
        "",
        "## Methods",
        "",
        "| method | what it does |",
        "|---|---|",
        *(f"| `{name}` | {text[0].upper() + text[1:]} |" for name, text in summaries().items() if name in own),
        "",
        "## Files of adapters",
        "",
        *(f"- `{format.name}`: {format.title}" for format in FORMATS),
        "",
        f"llama.cpp's names (GGUF) are known of {len(ARCHITECTURES)} families: {listed(ARCHITECTURES)}.",
        "",
        "## Quantised bases",
        "",
        f"By the `quant_method` of their configuration: {listed(QUANTISED)}. Some have limits:",
        "[bases](bases.md#quantised-bases).",
        "",
        "## Servers",
        "",
        "`samerge check` knows the rules of: " + ", ".join(f"{name} ({told})" for name, told in VERSIONS.items()) + ".",
    ]
    assert [name for name in available_methods() if name in own]
    return "\n".join(lines) + "\n"


def api() -> str:
    """`docs/api.md`."""
    first = ["merge", "add_weighted_adapter", "MergedAdapter", "compare", "tune", "merge_full", "MergedModel", "bake"]
    names = [name for name in samerge.__all__ if not name.startswith("_")]
    errors = [name for name in names if name.endswith("Error")]
    rest = [name for name in names if name not in (*first, *errors)]
    lines = [MADE, "", "# Python", "", "Everything that is public; the rest may change in any release.", ""]
    for title, group in (("Merging", first), ("The rest", rest), ("Errors", errors)):
        lines += [f"## {title}", ""]
        for name in group:
            thing = getattr(samerge, name)
            lines += [f"::: {thing.__module__}.{thing.__qualname__}", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (DOCS / "supported.md").write_text(supported(), encoding="utf-8")
    (DOCS / "api.md").write_text(api(), encoding="utf-8")
