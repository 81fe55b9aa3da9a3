"""Putting an adapter on a live model: all of it or nothing, and taking it off again.

A `PeftModel`, or a model of diffusers or transformers that PEFT's layers were put into (`pipe.unet`, `add_adapter`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
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
    """Register an adapter on a live model and give it its weights; on any failure take it off again.

    Raises:
        AdapterError: the model has no adapters of PEFT's.
        OutputExistsError: the name is taken.
        BaseModelError: keys or shapes do not fit; nothing was added.
    """
    from peft import PeftModel, inject_adapter_in_model, set_peft_model_state_dict

    wrapped = isinstance(model, PeftModel)
    if not wrapped and not getattr(model, "peft_config", None):
        raise AdapterError(
            f"expected a PeftModel, or a model with adapters in it, got {type(model).__name__}; wrap it with "
            f"PeftModel.from_pretrained, or save the merged adapter and load it from there"
        )
    refuse_taken(model, adapter_name)
    activate = _activation(model)
    if not wrapped:
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    # PEFT draws factors for embeddings all the same
    with trained_as_before(model), _merged_stays_merged(model), fork_rng(devices=[]):
        try:
            # On the meta device first: PEFT then neither draws random numbers nor touches the base weights. PeftModel's
            # own method: those for classifiers would train a head with it.
            replicated, config.layer_replication = config.layer_replication, None  # or PEFT replicates them once more
            if isinstance(model, PeftModel):
                PeftModel.add_adapter(model, adapter_name, config, low_cpu_mem_usage=True)
            else:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # of course
                    inject_adapter_in_model(config, model, adapter_name, low_cpu_mem_usage=True)
            config.layer_replication = replicated
            result = set_peft_model_state_dict(
                model, dict(tensors), adapter_name=adapter_name, low_cpu_mem_usage=True, ignore_mismatched_sizes=False
            )
            _fill_offloaded(model, adapter_name, tensors)
            _settle_dtypes(model, adapter_name, tensors)
            if not wrapped:
                activate()  # PEFT makes what it puts into a model the active adapter
            unexpected = list(getattr(result, "unexpected_keys", []))
            left = [name for name, p in model.named_parameters() if f".{adapter_name}." in f"{name}." and p.is_meta]
            if unexpected or left:
                raise BaseModelError(
                    f"adding {adapter_name!r} to this {type(model).__name__}: "
                    f"{f'no module for {unexpected[:3]}' if unexpected else f'no tensor for {left[:3]}'}"
                )
        except BaseException as error:
            take_off(model, adapter_name, activate)
            if isinstance(error, (ValueError, RuntimeError)) and not isinstance(error, BaseModelError):
                raise BaseModelError(f"adding {adapter_name!r} to this {type(model).__name__}: {error}") from error
            raise


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


def _activation(model: Any) -> Callable[[], None]:
    """A function that makes the adapters active that are active now."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel):
        active = model.base_model.active_adapter
        return lambda: model.base_model.set_adapter(active)
    layers = {name: list(m.active_adapters) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    everywhere = sorted({name for names in layers.values() for name in names})

    def activate() -> None:
        for name, module in model.named_modules():
            if isinstance(module, BaseTunerLayer):  # a layer that had no adapter before has those of the others
                module.set_adapter(layers.get(name, everywhere))

    return activate


def take_off(model: Any, adapter_name: str, activate: Callable[[], None] | None = None) -> None:
    """Remove whatever there is of an adapter. PEFT's own roll-back leaves it in the layers that it had reached."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    activate = activate or _activation(model)
    model.peft_config.pop(adapter_name, None)
    for module in list(model.modules()):
        if isinstance(module, BaseTunerLayer):
            module.delete_adapter(adapter_name)
    for name, layer in list(model.named_modules()):
        if _is_empty(layer):  # put there for this adapter alone
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    activate()


def _is_empty(layer: Any) -> bool:
    """Whether it is a plain layer of PEFT's that holds no adapter any more."""
    from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Embedding, Linear

    kinds = (Linear, Embedding, Conv1d, Conv2d, Conv3d)
    return isinstance(layer, kinds) and not any(getattr(layer, part, None) for part in layer.adapter_layer_names)


@contextmanager
def trained_as_before(model: nn.Module) -> Iterator[None]:
    """Afterwards what was trained before is trained, and nothing else, and every module is in the mode that it was in.

    Releases of PEFT differ in what they change on the way.
    """
    trained = {name.replace(".base_layer.", "."): one.requires_grad for name, one in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained.get(name.replace(".base_layer.", "."), False))
        for module, mode in modes.items():
            module.training = mode


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
