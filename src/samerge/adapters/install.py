"""Putting an adapter on a live `PeftModel`: all of it or nothing, and taking it off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.random import fork_rng

from samerge.errors import AdapterError, BaseModelError, OutputExistsError
from samerge.weights.offloaded import execution_device

if TYPE_CHECKING:
    from peft import LoraConfig


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
