"""Live models: putting a merged adapter on a `PeftModel`, and `add_weighted_adapter` with PEFT's argument names."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.random import fork_rng

from samerge.checkpoints.offloaded import execution_device
from samerge.errors import AdapterError, BaseModelError, OptionError, OutputExistsError
from samerge.graph import FlowGraph

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

    from samerge.merged import MergedAdapter


def refuse_taken(model: nn.Module, adapter_name: str) -> None:
    """Refuse a name that an adapter of the model has already.

    Raises:
        OutputExistsError: it is taken.
    """
    taken: Mapping[str, Any] = getattr(model, "peft_config", {})
    if adapter_name in taken:
        raise OutputExistsError(
            f"this model already has an adapter {adapter_name!r} (it has {sorted(taken)}); choose another name, or "
            f"call model.delete_adapter({adapter_name!r}) first"
        )


def install(model: nn.Module, adapter_name: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Register an adapter on a live `PeftModel` and give it its weights; on any failure take it off again.

    Raises:
        AdapterError: the model is not a `PeftModel`.
        OutputExistsError: the name is taken.
        BaseModelError: keys or shapes do not fit; nothing was added.
    """
    from peft import PeftModel, set_peft_model_state_dict

    if not isinstance(model, PeftModel):
        raise AdapterError(
            f"expected a PeftModel, got {type(model).__name__}; wrap it with PeftModel.from_pretrained, or save the "
            f"merged adapter and load it from there"
        )
    refuse_taken(model, adapter_name)
    active = model.base_model.active_adapter
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with _merged_stays_merged(model), fork_rng(devices=[]):  # PEFT draws factors for embeddings all the same
        try:
            # On the meta device first: PEFT then neither draws random numbers nor touches the base weights. PeftModel's
            # own method: those for classifiers would train a head with it.
            replicated, config.layer_replication = config.layer_replication, None  # or PEFT replicates them once more
            PeftModel.add_adapter(model, adapter_name, config, low_cpu_mem_usage=True)
            config.layer_replication = replicated
            result = set_peft_model_state_dict(
                model, dict(tensors), adapter_name=adapter_name, low_cpu_mem_usage=True, ignore_mismatched_sizes=False
            )
            _fill_offloaded(model, adapter_name, tensors)
            _settle_dtypes(model, adapter_name, tensors)
            unexpected = list(getattr(result, "unexpected_keys", []))
            left = [name for name, p in model.named_parameters() if f".{adapter_name}." in f"{name}." and p.is_meta]
            if unexpected or left:
                raise BaseModelError(
                    f"adding {adapter_name!r} to this {type(model).__name__}: "
                    f"{f'no module for {unexpected[:3]}' if unexpected else f'no tensor for {left[:3]}'}"
                )
        except BaseException as error:
            take_off(model, adapter_name, active)
            if isinstance(error, (ValueError, RuntimeError)) and not isinstance(error, BaseModelError):
                raise BaseModelError(f"adding {adapter_name!r} to this {type(model).__name__}: {error}") from error
            raise
        finally:
            restore_trained(model, trained)


@contextmanager
def _merged_stays_merged(model: nn.Module) -> Iterator[None]:
    """Hide from PEFT that adapters are merged into the weights: it would unmerge them, which undoes it only nearly."""
    layers: list[Any] = [module for module in model.modules() if getattr(module, "merged_adapters", None)]
    merged = [layer.merged_adapters for layer in layers]
    for layer in layers:
        layer.merged_adapters = []
    try:
        yield
    finally:
        for layer, names in zip(layers, merged, strict=True):
            layer.merged_adapters = names


def take_off(model: Any, adapter_name: str, active: str | list[str]) -> None:
    """Remove whatever there is of an adapter. PEFT's own roll-back leaves it in the layers that it had reached."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.peft_config.pop(adapter_name, None)
    for module in list(model.modules()):
        if isinstance(module, BaseTunerLayer):
            module.delete_adapter(adapter_name)
    model.base_model.set_adapter(active)


def restore_trained(model: nn.Module, trained: Mapping[str, bool]) -> None:
    """What was trained before is trained, and nothing else; releases of PEFT differ in what they change on the way."""
    plain = {name.replace(".base_layer.", "."): value for name, value in trained.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(plain.get(name.replace(".base_layer.", "."), False))


def _settle_dtypes(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Undo PEFT's cast of the factors to the base's dtype, which rounds those of adapters that are kept in float32."""
    for name, parameter in model.named_parameters():
        tensor = tensors.get(f"{name}.".replace(f".{adapter_name}.", ".").removesuffix("."))
        if tensor is not None and f".{adapter_name}." in f"{name}." and tensor.dtype != parameter.dtype:
            parameter.data = tensor.to(parameter.device)


def _fill_offloaded(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Give the factors their values where PEFT sent them to the meta device, after a base weight that is offloaded.

    They stay where accelerate brings the base weight for the forward pass.
    """
    for name, parameter in list(model.named_parameters()):
        key = f"{name}.".replace(f".{adapter_name}.", ".").removesuffix(".")
        if not parameter.is_meta or key == name or key not in tensors:
            continue
        holder, _, leaf = name.rpartition(".")
        layer: Any = model.get_submodule(holder[: holder.rindex(".lora_")])
        device = execution_device(layer.get_base_layer()) or "cpu"
        value = nn.Parameter(tensors[key].to(device=device, dtype=parameter.dtype), requires_grad=False)
        setattr(model.get_submodule(holder), leaf, value)


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
    from samerge.api import merge
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
