"""Live models: merging adapters on a model or a pipeline, with the argument names of PEFT's `add_weighted_adapter`."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack

from samerge.adapters.install import refuse_taken
from samerge.adapters.live_pipeline import refuse_taken_on
from samerge.errors import OptionError
from samerge.merging.merge_adapters import merge
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import DEFAULT_METHOD
from samerge.methods.keywords import LiveKeywords
from samerge.methods.registry import find
from samerge.options.option import table
from samerge.weights.pipeline import Pipeline


def add_weighted_adapter(
    model: nn.Module | Pipeline,
    adapters: Sequence[str],
    weights: Sequence[float] | str | None = None,
    adapter_name: str = "merged",
    combination_type: str | None = None,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool | None = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: Literal["total", "frequency"] = "total",
    *,
    progress: bool = True,
    **options: Unpack[LiveKeywords],
) -> MergedAdapter:
    """Merge adapters of a live model and put the result on it, with PEFT's own argument names.

    The model is a `PeftModel`, a model that adapters were loaded into (`pipe.unet`, `pipe.transformer`, a text
    encoder), or a whole pipeline of diffusers: all its models at once, each with what the adapters have for it.

    What is another than in PEFT's method of this name:

    - where no `combination_type` is named it is `saliency`, the default of `samerge.merge` (PEFT's is "svd").
    - `combination_type="linear"` and `"cat"` are the same exact weighted sum of the updates, sum_n w_n s_n B_n A_n.
      PEFT's `linear` adds the A's and the B's apart, which brings in the cross terms B_i A_j of every two adapters.
    - `"svd"` truncates that sum to `svd_rank` through the factors: the same singular values, without the dense update.
    - PEFT's `ties_svd`, `dare_linear`, `dare_ties`, `magnitude_prune` and their `_svd` forms all work on the dense
      updates, a few rows at a time; `ties` trims over the whole adapter, `ties_svd` by layer as PEFT does.
    - ranks, scales, rsLoRA, patterns and target modules may differ between the adapters.
    - a name that is taken, or fewer weights than adapters, is an error; PEFT returns silently or cuts the list short.
    - a failure leaves the model as it was.

    Args:
        model: the model or pipeline; its base weights and its adapters are only read.
        adapters: names of adapters that it has.
        weights: one for each adapter, its strength: 1.0 full (the default), 0.5 half, negative subtracts; or "nan", in
            proportion to inverse norms.
        adapter_name: name of the new adapter; must not be taken.
        combination_type: a name from `samerge.available_methods()`, or PEFT's.
        svd_rank: rank of the result, as `rank`.
        svd_clamp: not supported: clamping makes the truncation inexact.
        svd_full_matrices: ignored; the exact path needs no full SVD.
        svd_driver: ignored likewise.
        density: of methods that have one.
        majority_sign_method: "total" or "frequency", for the methods that vote on signs; ignored by the others.
        progress: show progress bars when on a terminal.
        **options: those of `samerge.merge`, by the same names.

    Returns:
        The merged adapter, already on the model: `model.set_adapter(adapter_name)` makes it active, on a pipeline
        `pipe.set_adapters(adapter_name)`.

    Raises:
        OutputExistsError: `adapter_name` is taken.
        AdapterError: an adapter is missing, or is not a plain LoRA.
        OptionError: an option is not known or out of its range.
        BaseModelError: the base cannot be read.

    Example:
        ```python
        samerge.add_weighted_adapter(model, ["math", "code"], [1.0, 0.8], "merged")
        samerge.add_weighted_adapter(model, ["math", "code"], None, "paper", "paper", density=0.5)
        model.set_adapter("merged")
        ```
    """
    if isinstance(adapters, str) or len(set(adapters)) != len(adapters):
        raise OptionError(f"adapters={adapters!r} must be a list of different adapter names")
    if svd_clamp is not None:
        raise OptionError(
            f"svd_clamp={svd_clamp} is not supported: clamped factors are no longer the best approximation; "
            f"leave it out"
        )
    given: dict[str, Any] = {**options, "svd_rank": svd_rank, "density": density}
    ignored: dict[str, Any] = {}
    if svd_driver is not None:
        ignored["svd_driver"] = svd_driver
    if svd_full_matrices is not True:
        ignored["svd_full_matrices"] = svd_full_matrices
    method = combination_type if combination_type is not None else DEFAULT_METHOD
    if any(row.name == "majority_sign_method" for row in table(find(method).options)):
        given["majority_sign_method"] = majority_sign_method
    elif majority_sign_method != "total":
        ignored["majority_sign_method"] = majority_sign_method
    if ignored:
        python_warnings.warn(
            f"add_weighted_adapter ignores {', '.join(f'{k}={v!r}' for k, v in ignored.items())}: "
            f"the exact path through the factors has no use for it",
            stacklevel=2,
        )
    if isinstance(model, nn.Module):
        refuse_taken(model, adapter_name)
    else:
        refuse_taken_on(model, adapter_name)
    merged = merge(model, list(adapters), method=combination_type, weights=weights, progress=progress, **given)
    merged.apply_to(model, adapter_name)
    return merged
