"""Files of weights beside an adapter's own: what trainers put there that they trained beside the LoRA.

LLaVA writes `non_lora_trainables.bin`, LongLoRA `trainable_params.bin`, reward models `value_head.safetensors`,
ms-swift `vit.safetensors`. They are never opened: only that they are there is known, and a copy may be asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

#: Endings of files that hold weights.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".gguf")

#: What a training keeps to go on from: no weights of the model.
_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state)\.\w+|.*_optim_states\.pt")


def weight_files(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a folder's file names that are weights beside the adapter's own, sorted.

    Example:
        >>> weight_files(["adapter_model.safetensors", "value_head.bin", "optimizer.pt", "README.md"])
        ('value_head.bin',)
    """
    return tuple(
        sorted(
            name
            for name in names
            if name.endswith(_WEIGHTS) and not name.startswith("adapter_model.") and not _STATE.fullmatch(name)
        )
    )


def companions_of(folder: Path) -> tuple[Path, ...]:
    """The files of weights that lie beside an adapter's own, which may be links within the Hub's cache."""
    return tuple(folder / name for name in weight_files(path.name for path in folder.iterdir() if path.is_file()))


def lies_there(path: Path) -> bool:
    """Whether a file is where it seems to be: in its folder, or, as a link, in the same repository of the Hub's cache.

    A stranger's folder may hold links to anything; what they point to is not copied.
    """
    real, folder = path.resolve(), path.parent.resolve()
    cached = next((parent for parent in folder.parents if parent.name.startswith("models--")), folder)
    return real.is_file() and (real.parent == folder or cached in real.parents)
