"""Live models: putting a merged adapter on a `PeftModel`, and `add_weighted_adapter` with PEFT's argument names."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from samerge.adapters.install import refuse_taken
from samerge.errors import OptionError
from samerge.graph import FlowGraph

if TYPE_CHECKING:
    import torch

    from samerge.merging.merged_adapter import MergedAdapter


def add_weighted_adapter(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float] | str | None = None,
    adapter_name: str = "merged",
    combination_type: str | None = None,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | str | None = None,
    majority_sign_method: str = "total",
    *,
    rank: int | None = None,
    recipe: Literal["paper", "even"] | None = None,
    balance: Literal["none", "norm", "global"] | None = None,
    selection: str | None = None,
    aggregation: str | None = None,
    iterations: int | None = None,
    refresh: int | None = None,
    basis: Literal["svd", "native"] | None = None,
    scaling: float | str | None = None,
    agreement: Literal["absolute", "signed", "paper", "task"] | None = None,
    scope: Literal["layer", "global"] | None = None,
    connectivity: Literal["flow", "local"] | FlowGraph | None = None,
    residual: bool | None = None,
    precision: Literal["float32", "float64"] | None = None,
    spectrum: Literal["kept", "flat"] | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    modules_to_save: str | None = None,
    dora: str | None = None,
    method_options: Mapping[str, float | str] | None = None,
    progress: bool = True,
) -> MergedAdapter:
    """Merge adapters of a live `PeftModel` into a new one on the same model.

    The arguments are those of PEFT's `LoraModel.add_weighted_adapter`, by the same names. What differs, and why:

    - `combination_type="linear"` and `"cat"` are the same exact weighted sum of the updates, sum_n w_n s_n B_n A_n.
      PEFT's `linear` adds the A's and the B's apart, which brings in the cross terms B_i A_j of every two adapters.
    - `"svd"` truncates that sum to `svd_rank` through the factors: the same singular values, thousands of times faster.
    - PEFT's `ties_svd`, `dare_linear`, `dare_ties`, `magnitude_prune` and their `_svd` forms all work on the dense
      updates, a few rows at a time; `ties` trims over the whole adapter, `ties_svd` by layer as PEFT does.
    - ranks, scales, rsLoRA, patterns and target modules may differ between the adapters.
    - a name that is taken, or fewer weights than adapters, is an error; PEFT returns silently or cuts the list short.
    - a failure leaves the model as it was.

    Args:
        model: the `PeftModel`; its base weights and its adapters are only read.
        adapters: names of adapters that it has.
        weights: one for each adapter, 1.0 each by default; or "nan", in proportion to inverse norms; or "auto".
        adapter_name: name of the new adapter; must not be taken.
        combination_type: a name from `samerge.methods()`, or PEFT's. Where this, `recipe`, `selection` and
            `aggregation` are all None, the merge is the recipe "even", as that of `merge` (PEFT's default is "svd").
        svd_rank: truncate every merged layer to this rank.
        svd_clamp: not supported: clamping makes the truncation inexact.
        svd_full_matrices: ignored; the exact path needs no full SVD.
        svd_driver: ignored likewise.
        density: share of its rank-1 components (or elements) that each adapter keeps in each layer, in (0, 1]; or
            "adaptive", "adaptive:<mean>".
        majority_sign_method: "total" or "frequency", for the methods that vote on signs; ignored by the others.
        rank: rank of the result; before the sum, the number of components kept, instead of `density`.
        recipe: named set of defaults; an explicit option wins over it.
        balance: bring the experts to their mean norm first, in each layer ("norm") or as a whole ("global").
        selection: which rank-1 components take part: "saliency", another criterion, or "none".
        aggregation: how what was selected is combined: "sum", or a method's name.
        iterations: scoring and pruning steps.
        refresh: gamma is computed anew every so many iterations, 1 by default; 0 for the first one alone.
        basis: what the rank-1 components are.
        scaling: lambda, "auto", "auto:<c>", "unit", "lines:<alpha>:<beta>", "interference", "interference:layer".
        agreement: "absolute", |gamma eta|, or "signed", |gamma| w eta; "paper" or "task" for `elementwise`.
        scope: rank components in each layer apart, or over all layers.
        connectivity: "flow", "local", or a flow graph of one's own.
        residual: whether the flow graph has residual edges.
        precision: what flows and gamma are computed in, "float32" or, for checks, "float64".
        spectrum: "flat" makes the singular values of every merged layer equal.
        dtype: of the new adapter; the adapters' own by default.
        device: where to compute; where the model is by default.
        modules_to_save: what becomes of fully trained modules and token rows: "average", "take:<adapter>" or "drop".
        dora: "exact" or "exact:<rank>" converts DoRA adapters on the way.
        method_options: what only this method has, by name.
        progress: show progress bars when on a terminal.

    Returns:
        The merged adapter, already on the model: `model.set_adapter(adapter_name)` makes it active.

    Raises:
        OutputExistsError: `adapter_name` is taken.
        AdapterError: an adapter is missing, or is not a plain LoRA.
        OptionError: an option is out of its range.
        BaseModelError: the base cannot be read.

    Example:
        ```python
        samerge.add_weighted_adapter(model, ["math", "code"], [1.0, 0.8], "merged")
        samerge.add_weighted_adapter(model, ["math", "code"], None, "salient", "saliency", density=0.5)
        model.set_adapter("merged")
        ```
    """
    from samerge.merging.merge_adapters import merge
    from samerge.methods.peft_names import method_of

    refuse_taken(model, adapter_name)
    if isinstance(adapters, str) or len(set(adapters)) != len(adapters):
        raise OptionError(f"adapters={adapters!r} must be a list of different adapter names")
    if svd_clamp is not None:
        raise OptionError(
            f"svd_clamp={svd_clamp} is not supported: clamped factors are no longer the best approximation; "
            f"leave it out"
        )
    ignored: dict[str, Any] = {}
    if svd_driver is not None:
        ignored["svd_driver"] = svd_driver
    if svd_full_matrices is not True:
        ignored["svd_full_matrices"] = svd_full_matrices
    method, own_options = method_of(combination_type, aggregation, majority_sign_method, method_options)
    if majority_sign_method != "total" and "majority_sign_method" not in own_options:
        ignored["majority_sign_method"] = majority_sign_method
    if ignored:
        python_warnings.warn(
            f"add_weighted_adapter ignores {', '.join(f'{k}={v!r}' for k, v in ignored.items())}: "
            f"the exact path through the factors has no use for it",
            stacklevel=2,
        )
    merged = merge(
        model,
        list(adapters),
        weights=weights,
        method=method,
        recipe=recipe,
        balance=balance,
        selection=selection,
        aggregation=aggregation,
        rank=rank,
        density=density,
        iterations=iterations,
        refresh=refresh,
        basis=basis,
        scaling=scaling,
        agreement=agreement,
        scope=scope,
        connectivity=connectivity,
        residual=residual,
        precision=precision,
        svd_rank=svd_rank,
        spectrum=spectrum,
        dtype=dtype,
        device=device,
        modules_to_save=modules_to_save,
        dora=dora,
        method_options=own_options or None,
        progress=progress,
    )
    merged.apply_to(model, adapter_name)
    return merged
