"""Run the base, and say for each adapted module how large its input channels are.

With m_j the mean of the square of a module's input channel j, over all positions of all inputs, channel j of every
update is multiplied with

    s_j = (m_j / mean(m) + RIDGE)^POWER

while it is merged, and divided by it afterwards: what an adapter does to a channel that is large is heard more, and
weights alone do not say which are. The whole second moment would be a matrix (as in RegMean, Jin et al. 2023,
arXiv 2212.09849); measured, its diagonal does as well (docs/evidence.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError, OptionError, SamergeError
from samerge.merging.calibration import texts
from samerge.merging.calibration.base import adapted, alone, runnable
from samerge.merging.calibration.squares import InputSquares
from samerge.methods.problem import Site
from samerge.options.calibration import Calibration
from samerge.parallel.progress import Progress
from samerge.weights import WeightSource
from samerge.weights.inside_peft import unwrap

#: Of mean squares: between leaving channels as they are (0) and measuring updates by their outputs (1/2).
POWER = 0.25
#: Added to the mean squares, as a share of their mean: a channel that was hardly used is not left out.
RIDGE = 0.1


@dataclass(frozen=True)
class Channels:
    """What the input channels of modules are multiplied with while they are merged.

    Args:
        of: s, (d_in,) float32 on the CPU, by module; of those that were seen.
        notes: what was run, and how many modules were not seen.
    """

    of: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def calibrate(
    given: Calibration,
    sites: Sequence[Site],
    base: object,
    source: WeightSource | None,
    device: torch.device,
    bars: Progress,
) -> Channels:
    """Run the base on what was given.

    Args:
        given: the inputs.
        sites: the adapted modules.
        base: what the base was given as; a live model or pipeline is run as it is, without its adapters.
        source: its weights; a base in a folder is loaded with transformers.
        device: where a base that is loaded here runs.
        bars: where to report progress.

    Raises:
        OptionError: no base was given, the inputs cannot be read or do not suit it, or no adapted module took part.
        BaseModelError: the base cannot be loaded or run, or gives numbers that are none.
        AdapterError: adapters are merged into a live base.
    """
    read = texts.read_texts(given.file) if given.file is not None else list(given.texts)
    with bars.task("loading", 1):
        model = runnable(base, source, device)
    seen = InputSquares(adapted(model, [site.module for site in sites]))
    with alone(model), seen.watching():
        told = _run(given, read, model, source, bars)
    means = seen.means()
    found = {site.module: _scale(site, means[site.module]) for site in sites if site.module in means}
    scales = {module: one for module, one in found.items() if one is not None}
    if not scales:
        raise OptionError(f"calibration: the base was run on {told}, and no module that is adapted took part")
    left = [site.module for site in sites if site.module not in scales]
    without = f"; {len(left)} of {len(sites)} modules go without, such as {left[0]}" if left else ""
    return Channels(scales, (f"calibration: the base was run on {told}{without}",))


def _run(given: Calibration, read: Sequence[Any], model: Any, source: WeightSource | None, bars: Progress) -> str:
    """Run the model; what it was run on, in words."""
    if given.run is not None:
        with bars.task("calibrating", 1):
            given.run(model)
        return "inputs of a function"
    inner: Any = unwrap(model) if isinstance(model, nn.Module) else model
    if not hasattr(inner, "get_input_embeddings"):
        raise OptionError(
            f"calibration={given.plain()!r}: {type(inner).__name__} takes no tokens; in Python give calibration a "
            f"function that runs the model on inputs of its kind"
        )
    rows = texts.tokenised(read, texts.tokenizer_of(inner, source)) if read else texts.drawn(inner)
    tokens = sum(one.numel() for one in rows)
    try:
        with bars.task("calibrating", len(rows)) as advance:
            texts.on_ids(inner, rows, advance)
    except SamergeError:
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BaseModelError(
            f"calibration: running the base {type(inner).__name__} on {tokens} tokens failed: {reason}"
        ) from error
    if not read:
        return f"{tokens} tokens drawn at random"
    return f"{len(rows)} texts of {tokens} tokens{f' of {given.file}' if given.file is not None else ''}"


def _scale(site: Site, means: Tensor) -> Tensor | None:
    """s of a module, for each column of its update; None where its inputs tell nothing.

    A convolution's columns are its input channels, each as often as its kernel has places.

    Raises:
        BaseModelError: a mean is not a number, or infinite.
    """
    if not bool(means.isfinite().all()):
        raise BaseModelError(
            f"calibration: what the base hands to {site.module} is not finite; run it in another dtype (a loaded model "
            f"as the base), or merge without calibration"
        )
    mean, layout = float(means.mean()), site.layout
    width = {"linear": site.shape[1], "conv": layout.kernel[0] if layout.kernel else 0}.get(layout.kind)
    if mean == 0 or width != len(means):
        return None
    return (means / mean + RIDGE).pow(POWER).repeat_interleave(site.shape[1] // width).float()
