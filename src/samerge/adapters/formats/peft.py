"""PEFT: a folder with `adapter_config.json` and `adapter_model.safetensors`. LoRA in all its kinds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samerge.adapters.companions import companions_of
from samerge.adapters.files import open_adapter, peft_adapter
from samerge.adapters.formats.components import of_one_model
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.layouts import stored_tensors
from samerge.adapters.model import Adapter
from samerge.adapters.writer import write_adapter

TITLE = "PEFT's format"


def reads(place: Place) -> bool:
    """Whether there is a configuration beside the file, or a key has PEFT's prefix."""
    return place.config is not None or any(key.startswith("base_model.model.") for key in place.keys)


def open_folder(place: Place) -> Adapter:
    """The adapter in a folder, or in a file beside its configuration.

    Raises:
        AdapterError: a file is missing or broken, or the adapter is of a kind that cannot be merged.
    """
    if place.config is None:
        open_adapter(place.path.parent, place.name)  # which says what is missing
    beside = companions_of(place.path.parent) if place.folder else ()
    beside = tuple(path for path in beside if path.name != place.path.name)
    return peft_adapter(place.name, place.source, place.config or {}, place.tensors, beside)


def write(content: Content, path: Path, overwrite: bool) -> Path:
    """Write the folder, with the record and a card. A component of a pipeline is written as the model that it is.

    Raises:
        AdapterError: the adapter is of several components, or its names are kohya's.
        OutputExistsError: the folder is taken.
    """
    names = of_one_model(content.factors, path, kept=not content.asked)
    factors = {names[module]: one for module, one in content.factors.items()}
    layouts = {names[module]: content.layouts[module] for module in content.factors}
    settings = dict(content.settings)
    for field in ("target_modules", "rank_pattern", "alpha_pattern"):
        settings[field] = _renamed(settings.get(field), names)
    return write_adapter(
        path,
        {**stored_tensors(factors, layouts), **content.extras},
        {key: value for key, value in settings.items() if key in content.settings},
        content.record,
        content.card,
        overwrite=overwrite,
        beside=content.companions,
    )


def _renamed(given: Any, names: Mapping[str, str]) -> Any:
    """Entries that are whole names of modules under their new names; others as they are."""
    if isinstance(given, (list, tuple)):
        return sorted(names.get(entry, entry) for entry in given)
    return {names.get(key, key): value for key, value in given.items()} if isinstance(given, Mapping) else given


FORMAT = Format("peft", TITLE, reads, open_folder, write, use='PeftModel.from_pretrained(base, "{path}")')
