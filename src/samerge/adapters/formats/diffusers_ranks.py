"""The field `lora_adapter_metadata` of a diffusers file whose modules have several ranks: alpha is the rank, of each.

diffusers before 0.40 takes the rank of one module for the alpha of all where nothing says one, so that the others get
another scale than 1. It goes by this field of the header where there is one: PEFT's configuration of each component.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

METADATA_FIELD = "lora_adapter_metadata"


def told_ranks(ranks: Mapping[str, int]) -> dict[str, str]:
    """The field by its name; none where all modules of each component have one rank, which every release reads right.

    Args:
        ranks: by module, with its component before it.

    Example:
        >>> told_ranks({"unet.conv_in": 4, "unet.mid_block.proj": 4})
        {}
        >>> told_ranks({"unet.conv_in": 4, "unet.mid_block.proj": 4, "unet.conv_out": 2})["lora_adapter_metadata"][-44:]
        ': 2}, "unet.alpha_pattern": {"conv_out": 2}}'
    """
    components: dict[str, dict[str, int]] = {}
    for name, rank in sorted(ranks.items()):
        component, _, module = name.partition(".")
        # A name's end matches with and without `text_model`, which not every release of transformers has.
        components.setdefault(component, {})[module.removeprefix("text_model.")] = rank
    if all(len(set(own.values())) == 1 for own in components.values()):
        return {}
    fields = {
        f"{component}.{key}": value for component, own in components.items() for key, value in _config(own).items()
    }
    return {METADATA_FIELD: json.dumps(fields)}


def _config(ranks: Mapping[str, int]) -> dict[str, object]:
    """What PEFT is told of one component."""
    [(usual, _)] = Counter(ranks.values()).most_common(1)
    others = tuple(module for module, rank in ranks.items() if rank != usual)
    # The first key that a module's name ends with counts: the longest comes first, and whose name ends with another's
    # has a key of its own.
    ends = {f".{module}" for module in others}
    named = [m for m, rank in ranks.items() if rank != usual or any(m.endswith(end) for end in ends)]
    pattern = {module: ranks[module] for module in sorted(named, key=lambda one: (-len(one), one))}
    same = {"rank_pattern": pattern, "alpha_pattern": pattern}
    return {"r": usual, "lora_alpha": usual, "target_modules": list(ranks), **same}
