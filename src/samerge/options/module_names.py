"""What the name of a module says: its layer numbers, its type, the expert that it points at."""

from __future__ import annotations

import re

#: A part that is a whole number. A name that is nothing but a number is a name.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


#: The same in a name of kohya's, with `_` for `.`.
_NUMBER_OF_KOHYA = re.compile(r"(?<=_)\d+(?=_|$)")


def _numbers(module: str) -> re.Pattern[str]:
    kohyas = "." not in module and module.startswith(("lora_", "lycoris_"))
    return _NUMBER_OF_KOHYA if kohyas else _NUMBER


def module_type(module: str) -> str:
    """A module's name with its layer numbers replaced by `*`.

    Example:
        >>> module_type("model.layers.3.mlp.up_proj"), module_type("lora_te1_text_model_encoder_layers_0_mlp_fc1")
        ('model.layers.*.mlp.up_proj', 'lora_te1_text_model_encoder_layers_*_mlp_fc1')
    """
    return _numbers(module).sub("*", module)


def layer_numbers(module: str) -> tuple[int, ...]:
    """The numbers in a module's name, in order.

    Example:
        >>> layer_numbers("model.layers.3.mlp.experts.11.up_proj")
        (3, 11)
    """
    return tuple(int(number) for number in _numbers(module).findall(module))


def first_layer(module: str, start: int = 0) -> tuple[str, int] | None:
    """What stands before the first number in a module's name, and the number; None where there is none.

    Args:
        module: the name.
        start: look from this letter on.

    Example:
        >>> first_layer("model.layers.3.mlp.experts.11.up_proj"), first_layer("lm_head")
        (('model.layers.', 3), None)
    """
    found = _numbers(module).search(module, start)
    return None if found is None else (module[: found.start()], int(found[0]))


def expert_of(module: str) -> tuple[str, int | None]:
    """A name and the expert that it points at.

    Example:
        >>> expert_of("mlp.experts.down_proj[3]"), expert_of("mlp.up_proj")
        (('mlp.experts.down_proj', 3), ('mlp.up_proj', None))
    """
    if module.endswith("]") and module[:-1].rpartition("[")[2].isdigit():
        stem, _, number = module[:-1].rpartition("[")
        return stem, int(number)
    return module, None


def joined(prefix: str, name: str) -> str:
    """Two parts of a name with a dot between them; the other one where one is empty.

    Example:
        >>> joined("unet", "conv_in"), joined("", "conv_in")
        ('unet.conv_in', 'conv_in')
    """
    return f"{prefix}.{name}" if prefix and name else prefix or name


def stem_of(module: str) -> str:
    """What a module and its weight have in common: the name without the expert and without `.weight`.

    Example:
        >>> stem_of("mlp.experts.down_proj[3]"), stem_of("mlp.up_proj.weight")
        ('mlp.experts.down_proj', 'mlp.up_proj')
    """
    return expert_of(module)[0].removesuffix(".weight")
