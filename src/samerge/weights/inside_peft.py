"""The base model inside a `PeftModel`: its modules under the names they had before PEFT wrapped it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from samerge.errors import BaseModelError
from samerge.options.module_names import joined


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a `PeftModel`; any other model as it is."""
    get = getattr(model, "get_base_model", None)
    inner = get() if callable(get) else model
    if not isinstance(inner, nn.Module):
        raise BaseModelError(f"{type(model).__name__}.get_base_model() gave {type(inner).__name__}, not a module")
    return inner


@dataclass(frozen=True)
class BaseModule:
    """A module of the base model.

    Args:
        name: as it was before PEFT, `torch.compile` and the like wrapped the model.
        module: the module that holds the base's own parameters.
        tuners: PEFT's layers around it, outermost first.
        parents: the modules it lies in, innermost first, each with the two names of this module within it: as it is
            now and as it was.
    """

    name: str
    module: nn.Module
    tuners: tuple[nn.Module, ...] = ()
    parents: tuple[tuple[nn.Module, str, str], ...] = field(default=(), repr=False)

    def child(self, part: str, module: nn.Module) -> BaseModule:
        """A child that the base model has itself."""
        return BaseModule(joined(self.name, part), module, (), self._below(part, part))

    def inside(self, part: str, module: nn.Module, tuner: bool) -> BaseModule:
        """The module that a wrapper wraps: of the same name."""
        tuners = (*self.tuners, self.module) if tuner else self.tuners
        return BaseModule(self.name, module, tuners, self._below(part, ""))

    def _below(self, now: str, before: str) -> tuple[tuple[nn.Module, str, str], ...]:
        above = ((parent, joined(a, now), joined(b, before)) for parent, a, b in self.parents)
        return ((self.module, now, before), *above)


def base_modules(model: nn.Module) -> Iterator[BaseModule]:
    """Every module of the base model that holds parameters or buffers of its own may be among these; nothing of PEFT's.

    Each module comes once, also where it is used under several names.
    """
    seen: set[int] = set()
    pending = [BaseModule("", unwrap(model))]
    while pending:
        here = pending.pop()
        if id(here.module) in seen:
            continue
        seen.add(id(here.module))
        children = dict(here.module.named_children())
        wrapped = _wrapped(here.module, children)
        if wrapped is not None:
            part, tuner = wrapped
            pending.append(here.inside(part, children[part], tuner))
            continue
        yield here
        pending.extend(here.child(part, child) for part, child in reversed(children.items()))


def _wrapped(module: nn.Module, children: dict[str, nn.Module]) -> tuple[str, bool] | None:
    """The child that a wrapper wraps, and whether it is one of PEFT's layers."""
    if "base_layer" in children and hasattr(module, "adapter_layer_names"):
        return "base_layer", True
    if "original_module" in children and hasattr(module, "_active_adapter"):
        return "original_module", False
    if "token_adapter" in children and hasattr(module, "_active_adapter"):
        return "token_adapter", False
    if "_orig_mod" in children:
        return "_orig_mod", False
    if "_fsdp_wrapped_module" in children:
        return "_fsdp_wrapped_module", False
    return None
