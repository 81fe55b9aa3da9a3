"""The names that transformers gives a checkpoint's tensors when it loads them.

Since transformers 5 many models are named otherwise in memory than in their checkpoints, and adapters are named after
the model in memory. Where an adapter does not match the checkpoint's names, they are translated by transformers' own
table, for which the model is built without any weights (on the meta device).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from samerge.weights import WeightSource

logger = logging.getLogger(__name__)


def names_in_memory(source: WeightSource) -> dict[str, str] | None:
    """The name of each tensor in memory -> its name in the checkpoint.

    Returns:
        None where transformers is too old to have a table, or does not know the model.
    """
    try:
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:
        return None
    architectures = source.config.get("architectures") or []
    model_class: Any = next(
        (getattr(transformers, name) for name in architectures if hasattr(transformers, name)), None
    )
    if model_class is None:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = model_class(model_class.config_class.from_dict(dict(source.config)))
        renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
        known: Mapping[str, Any] = model.state_dict()
        names = {
            rename_source_key(tensor, renamings, [], model.base_model_prefix, known)[0]: tensor
            for tensor in source.shapes
        }
    except Exception as error:  # another release, a model that needs code of its own: the names stay as they are
        logger.debug("transformers could not translate the names of %s: %s", source.name, error)
        return None
    return names if len(names) == len(source.shapes) else None
