"""Adapters of a live pipeline of diffusers: read from all its models, and put on them, all or none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from samerge.adapters import servable
from samerge.adapters.formats import diffusers
from samerge.adapters.formats.pairs import trimmed
from samerge.adapters.install import install, refuse_taken, take_off
from samerge.adapters.layouts import Layout, stored_tensors
from samerge.adapters.live_adapter import live_adapter
from samerge.adapters.model import LIVE, Adapter, Extras
from samerge.errors import AdapterError, BaseModelError
from samerge.linalg.factors import LoraFactors, pad
from samerge.weights.pipeline import Pipeline, models_of


def adapters_on(pipeline: Pipeline) -> set[str]:
    """The names of the adapters that any of its models has."""
    return {name for model in models_of(pipeline).values() for name in _names(model)}


def _names(model: Any) -> Collection[str]:
    return getattr(model, "peft_config", None) or ()


def pipeline_adapter(pipeline: Pipeline, name: str) -> Adapter:
    """An adapter of a live pipeline: what each model has of it, under names with the model's in front.

    Raises:
        AdapterError: no model has an adapter of that name, or it is of a kind that cannot be merged.
    """
    having = {part: one for part, one in models_of(pipeline).items() if name in _names(one)}
    if not having:
        raise AdapterError(
            f"there is no adapter {name!r} in this {type(pipeline).__name__}; it has {sorted(adapters_on(pipeline))}. "
            f"Load it with pipe.load_lora_weights(..., adapter_name=...)"
        )
    parts = {part: live_adapter(model, name) for part, model in having.items()}
    extras = [one.extras.renamed(f"{part}.{{}}".format) for part, one in parts.items()]
    return Adapter(
        name,
        f"{LIVE}{name}",
        {},
        {f"{part}.{module}": adapted for part, one in parts.items() for module, adapted in one.modules.items()},
        None,
        Extras(*({k: v for one in extras for k, v in getattr(one, part.name).items()} for part in fields(Extras))),
        tuple(dict.fromkeys(note for one in parts.values() for note in one.notes)),
        format=diffusers.FORMAT.name,
    )


def refuse_taken_on(pipeline: Pipeline, adapter_name: str) -> None:
    """Refuse a name that an adapter of one of the models has already.

    Raises:
        OutputExistsError: it is taken.
    """
    for model in models_of(pipeline).values():
        refuse_taken(model, adapter_name)


def install_on(
    pipeline: Pipeline,
    adapter_name: str,
    factors: Mapping[str, LoraFactors],
    layouts: Mapping[str, Layout],
    extras: Mapping[str, Any],
) -> None:
    """Put an adapter on the models of a pipeline that it has modules of, or on none; what is active stays so.

    Args:
        pipeline: it.
        adapter_name: a name that is not taken in any of its models.
        factors: by module, with the model's name in front.
        layouts: of each module.
        extras: what it carries beside its factors, for which there is no place on a pipeline.

    Raises:
        AdapterError: it has extras, or a model has no adapters of PEFT's.
        BaseModelError: it has a module of no model of the pipeline, or does not fit.
        OutputExistsError: the name is taken.
    """
    from peft import LoraConfig

    refuse_taken_on(pipeline, adapter_name)
    models, doing = models_of(pipeline), f"adding {adapter_name!r} to this {type(pipeline).__name__}"
    strange = [module for module in factors if module.partition(".")[0] not in models]
    if strange:
        raise BaseModelError(
            f"{doing}: its module {strange[0]!r} is of none of its models ({', '.join(models)}); merge with the "
            f"pipeline as the base, whose names decide, or save it and use pipe.load_lora_weights"
        )
    if extras:
        raise AdapterError(f"{doing}: it also has {min(extras)!r}, which cannot be put on a pipeline")
    ranks = trimmed(factors)
    done: list[Any] = []
    try:
        for part, model in models.items():
            own = {name[len(part) + 1 :]: one for name, one in ranks.items() if name.startswith(f"{part}.")}
            if not own:
                continue
            rank = max(one.rank for one in own.values())
            kinds = {module: layouts[f"{part}.{module}"] for module in own}
            settings = servable.settings(None, rank, sorted(own), kinds.values())
            config = LoraConfig(**{key: value for key, value in settings.items() if key != "peft_type"})
            install(model, adapter_name, config, stored_tensors({m: pad(one, rank) for m, one in own.items()}, kinds))
            done.append(model)
    except BaseException:
        for model in done:
            take_off(model, adapter_name)
        raise
