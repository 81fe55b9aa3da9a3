"""Suites of real tasks with trained adapters: what `quality.py` measures merges on. One file a suite."""

from __future__ import annotations

import importlib
from pathlib import Path

from suites.base import Suite

#: Where each suite's class is: module and name. Imported when used, as each has needs of its own.
SUITES: dict[str, tuple[str, str]] = {
    "exact": ("suites.exact", "Exact"),
    "language": ("suites.language", "Language"),
    "language-mixed": ("suites.language", "LanguageMixed"),
    "minilm": ("suites.minilm", "MiniLM"),
    "minilm-same-init": ("suites.minilm", "MiniLMSameInit"),
    "smollm2": ("suites.smollm2", "SmolLM2"),
    "vision": ("suites.vision", "Vision"),
}

#: Suites of adapters that others published, by the Hub: `public/README.md`.
PUBLIC: dict[str, tuple[str, str]] = {
    "flan-t5-glue": ("public.flan_t5_glue", "FlanT5Glue"),
    "knots-nli": ("public.knots_nli", "KnotsNli"),
    "knots-vision": ("public.knots_vision", "KnotsVision"),
}


def suite(name: str, cache: Path, ready: Path | None = None, train: bool = False) -> Suite:
    """A suite by name.

    Args:
        name: one of `SUITES` or `PUBLIC`.
        cache: the folder for downloads and trained adapters.
        ready: a folder with one ready-made adapter folder for each task, instead of training.
        train: train the adapters again, also where the cache has them.
    """
    module, kind = (SUITES | PUBLIC)[name]
    made: Suite = getattr(importlib.import_module(module), kind)(cache=cache, ready=ready, train=train)
    return made
