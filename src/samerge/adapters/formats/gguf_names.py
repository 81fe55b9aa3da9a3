"""llama.cpp's names of a language model's weights, and its order of the rows of q and k; to and from the base's.

The package `gguf` (samerge[gguf]) makes the names; which architecture a base is, and whether llama.cpp keeps the rows
in another order, says the table below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from samerge.adapters.model import Adapter
from samerge.errors import BaseModelError, OptionError
from samerge.graph.naming import told_number
from samerge.linalg.factors import LoraFactors

#: Family of transformers -> llama.cpp's architecture, and whether it keeps the rows of q and k interleaved; each as
#: llama.cpp's own converter has it (benchmarks/readers.py).
ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "apertus": ("apertus", False),
    "arcee": ("arcee", True),
    "cohere": ("command-r", False),
    "cohere2": ("cohere2", False),
    "ernie4_5": ("ernie4_5", False),
    "exaone4": ("exaone4", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "glm": ("chatglm", False),
    "glm4": ("glm4", False),
    "granite": ("granite", True),
    "hunyuan_v1_dense": ("hunyuan-dense", False),
    "internlm3": ("llama", True),
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "nemotron": ("nemotron", False),
    "olmo": ("olmo", True),
    "olmo2": ("olmo2", False),
    "olmo3": ("olmo2", False),
    "phi": ("phi2", False),
    "phi3": ("phi3", False),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "seed_oss": ("seed_oss", False),
    "smollm3": ("smollm3", True),
    "stablelm": ("stablelm", False),
    "starcoder2": ("starcoder2", False),
}
#: llama.cpp's name of a module, and the field of a file that says the architecture.
MODULE = r"blk\.\d+\.\w+|output"
ARCHITECTURE = "general.architecture"


def package(doing: str) -> ModuleType:
    """The package `gguf`.

    Args:
        doing: what it is wanted for, for errors.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise OptionError(f"{doing}: GGUF files need the package gguf; install samerge[gguf]") from error
    return gguf  # type: ignore[no-any-return]


def names_of(modules: Iterable[str], base: Mapping[str, Any], doing: str) -> tuple[str, dict[str, str]]:
    """llama.cpp's architecture of a base, and what it calls those of its modules that it has.

    Args:
        modules: as the base names them.
        base: its configuration; empty where none was given.
        doing: what is being done, for errors.

    Raises:
        BaseModelError: the family is none that is known here.
        OptionError: the package is not installed.
    """
    gguf = package(doing)
    config = base.get("text_config") or base
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise BaseModelError(
            f"{doing}: "
            + (f"the base is of the family {kind!r}" if base else "there is no base; give base=")
            + f", and llama.cpp's names follow from one of {', '.join(sorted(ARCHITECTURES))}. For others write PEFT's "
            f"format, and use llama.cpp's convert_lora_to_gguf.py"
        )
    architecture = ARCHITECTURES[kind][0]
    index = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(index, told_number(config, ("num_hidden_layers",), doing) or 0)
    found = {module: table.get_name(module.replace("language_model.", "")) for module in modules}
    return architecture, {module: name for module, name in found.items() if name is not None}


def heads_of(rows: Mapping[str, int], base: Mapping[str, Any], doing: str) -> dict[str, int]:
    """The heads of each q and k whose rows llama.cpp keeps interleaved; none in most families.

    Args:
        rows: of each module, as the base names it.
        base: its configuration, of a family in the table.
        doing: what is being done, for errors.

    Raises:
        BaseModelError: the configuration does not say the heads, or they are not those of the rows.
    """
    config = base.get("text_config") or base
    if not ARCHITECTURES[str(config.get("model_type"))][1]:
        return {}
    q = told_number(config, ("num_attention_heads",), doing)
    if q is None:
        raise BaseModelError(f"{doing}: the base's configuration does not say num_attention_heads")
    k = told_number(config, ("num_key_value_heads",), doing) or q
    heads = {m: q if m.endswith(".q_proj") else k for m in rows if m.endswith((".q_proj", ".k_proj"))}
    for module, count in heads.items():
        if rows[module] % (2 * count):
            raise BaseModelError(
                f"{doing}: the {rows[module]} rows of {module!r} are not those of {count} heads, as the base says"
            )
    return heads


def named_by_base(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], base: Mapping[str, Any], name: str
) -> Adapter:
    """An adapter under llama.cpp's names, under the base's; as it is where its names are others.

    Args:
        adapter: under any names.
        shapes: the base's tensors.
        base: its configuration.
        name: what to call the base in messages.

    Raises:
        BaseModelError: it is of another architecture, or of modules that the base does not have.
    """
    if adapter.format != "gguf" or not all(re.fullmatch(MODULE, module) for module in adapter.modules):
        return adapter
    doing = f"bringing adapter {adapter.name!r} to the names of the base model {name!r}"
    stems = [tensor.removesuffix(".weight") for tensor, shape in shapes.items() if len(shape) == 2]
    architecture, names = names_of(stems, base, doing)
    own = adapter.metadata.get(ARCHITECTURE) or architecture
    theirs = {called: stem for stem, called in names.items()}
    strange = [module for module in adapter.modules if module not in theirs]
    if own != architecture or strange:
        raise BaseModelError(
            f"{doing}: "
            + (f"it has {strange[0]!r}, which" if own == architecture else f"it is of llama.cpp's {own!r}, and")
            + f" the base, llama.cpp's {architecture!r}, "
            + ("does not have" if own == architecture else "is not")
            + ". Is it an adapter of another base model?"
        )
    heads = heads_of({theirs[module]: one.shape[0] for module, one in adapter.modules.items()}, base, doing)
    modules = {
        theirs[module]: replace(one, load=partial(_back, one.load, heads[theirs[module]]))
        if theirs[module] in heads
        else one
        for module, one in adapter.modules.items()
    }
    return replace(adapter, modules=dict(sorted(modules.items())))


def _back(load: Callable[[], LoraFactors], heads: int) -> LoraFactors:
    factors = load()
    return replace(factors, B=in_halves(factors.B, heads))


def interleaved(B: Tensor, heads: int) -> Tensor:
    """The rows of q or k as llama.cpp keeps them for the Llama family: the two halves of each head interleaved.

    Args:
        B: (out, r).
        heads: of this projection.

    Example:
        >>> import torch
        >>> interleaved(torch.arange(8)[:, None], 2).flatten().tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return B.reshape(heads, 2, B.shape[0] // heads // 2, B.shape[1]).swapaxes(1, 2).reshape(B.shape)


def in_halves(B: Tensor, heads: int) -> Tensor:
    """The rows of q or k as transformers has them, of those that llama.cpp keeps.

    Args:
        B: (out, r).
        heads: of this projection.

    Example:
        >>> import torch
        >>> in_halves(torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])[:, None], 2).flatten().tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return B.reshape(heads, B.shape[0] // heads // 2, 2, B.shape[1]).swapaxes(1, 2).reshape(B.shape)
