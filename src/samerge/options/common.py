"""The options that every method has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samerge.errors import OptionError
from samerge.options.kinds import Kind, whole, word
from samerge.options.module_weights import ModuleWeights, module_weights
from samerge.options.option import Options, option
from samerge.options.scaling import scaling

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def dtype() -> Kind:
    """A floating dtype, as `torch.dtype` or by its name."""

    def read(name: str, value: Any) -> str:
        found = str(value).removeprefix("torch.")
        if found not in _DTYPES:
            raise OptionError(f"{name}={value!r} is not one to write in; choose one of {', '.join(_DTYPES)}")
        return found

    return Kind(read, "torch.dtype | str", "NAME", _DTYPES, schema={"enum": [*_DTYPES]})


def text(metavar: str) -> Kind:
    """Any text, or what says itself as text."""
    return Kind(lambda name, value: str(value), "str", metavar, schema={"type": "string"})


@dataclass(frozen=True)
class CommonOptions(Options):
    """Options of any merge. None where the method says what it is."""

    rank: int | None = option(
        whole(),
        None,
        "Rank of the result.",
        told="the largest rank of any adapter; of methods that are not truncated their own, up to the sum",
    )
    scaling: float | str | None = option(
        scaling(),
        None,
        "The strength of the merged update, one more factor beside the weights: a number; or auto, 1.3 (or C) times "
        "the adapters' mean norm in each layer.",
        told="the method's own, mostly 1.0",
    )
    balance: str | None = option(
        word("norm", "none"),
        None,
        "norm brings the adapters to their mean norm in each layer first, so that each has one voice and its weight "
        "is its loudness; none leaves the norms as trained.",
        told="norm for saliency and even, none for the others",
    )
    dtype: str | None = option(
        dtype(), None, "Of the output: float32, bfloat16, float16 or float64.", told="the adapters' own"
    )
    device: str | None = option(text("NAME"), None, "Where to compute: cpu, cuda, mps.", told="cpu")
    modules_to_save: str | None = option(
        word("average", "update", "drop", pattern="take:.+", told="take:ADAPTER"),
        None,
        "What becomes of fully trained modules and token rows that adapters carry: their mean, the base's with every "
        "adapter's change times its weight added, one adapter's, or nothing.",
        told="an error if there are any",
    )
    dora: str | None = option(
        word("exact", pattern=r"exact:[1-9]\d*", told="exact:RANK"),
        None,
        "Convert DoRA adapters on the way: the exact update, truncated to the adapter's rank or to RANK.",
        told="an error if there are any",
    )
    companions: str | None = option(
        word("drop", pattern="take:.+", told="take:ADAPTER"),
        None,
        "What becomes of files of weights that lie beside adapters, such as a value head or a projector: left out, or "
        "one adapter's copied.",
        told="an error if there are any",
    )
    modules: ModuleWeights | None = option(
        module_weights(),
        None,
        "The adapters' strength in the modules that match a pattern, such as `*.mlp.*=0.5` or `layers.0.*=math:0`: "
        "multiplied with their weights; 0 leaves the modules out. The last that matches wins.",
        told="1 everywhere",
    )
