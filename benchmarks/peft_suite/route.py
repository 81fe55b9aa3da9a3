"""A pytest plugin that hands PEFT's `add_weighted_adapter` to samerge, as SAMERGE_ROUTE says.

| route | combination types that samerge merges |
|---|---|
| peft | none: PEFT as it is, for comparison |
| exact | cat, svd |
| linear | cat, svd, linear |
| paper | cat, svd: as the method `paper` at density 1, the whole way but for the scores, pruning nothing |

Everything else (`ties`, `dare_*`, `magnitude_prune*`, IA3) stays with PEFT.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

ROUTES: dict[str, frozenset[str]] = {
    "peft": frozenset(),
    "exact": frozenset({"cat", "svd"}),
    "linear": frozenset({"cat", "svd", "linear"}),
    "paper": frozenset({"cat", "svd"}),
}
RUNNING: list[Any] = []


def pytest_runtest_setup(item: Any) -> None:
    RUNNING[:] = [item]


def pytest_configure() -> None:
    _stub("diffusers", "StableDiffusionPipeline")
    _stub("datasets", "load_dataset")
    _stub("parameterized", "parameterized")
    _stub("scipy", "stats")
    install(os.environ["SAMERGE_ROUTE"])


def install(route: str) -> None:
    """Route `PeftModel.add_weighted_adapter`."""
    from peft import PeftModel
    from peft.tuners.lora import LoraModel

    import samerge
    from samerge.errors import GraphError

    def add_weighted_adapter(
        self: Any, adapters: Any, weights: Any, adapter_name: str, combination_type: str = "svd", **options: Any
    ) -> None:
        ours = combination_type in ROUTES[route] and isinstance(self.base_model, LoraModel)
        RUNNING[0].user_properties.append(("merged by", "samerge" if ours else "peft"))
        if not ours:
            self.base_model.add_weighted_adapter(adapters, weights, adapter_name, combination_type, **options)
            return
        if route != "paper":
            samerge.add_weighted_adapter(
                self, adapters, weights, adapter_name, combination_type, progress=False, **options
            )
            return
        rank = max(self.peft_config[name].r for name in adapters) if combination_type == "svd" else None
        options.setdefault("svd_rank", rank)
        for connectivity in ("flow", "local"):  # PEFT's custom models are of no family
            try:
                samerge.add_weighted_adapter(
                    self,
                    adapters,
                    weights,
                    adapter_name,
                    "paper",
                    **options | {"density": 1.0},
                    connectivity=connectivity,
                    progress=False,
                )
                return
            except GraphError:
                if connectivity == "local":
                    raise

    PeftModel.add_weighted_adapter = add_weighted_adapter


def _stub(package: str, *names: str) -> None:
    """Something to import where PEFT's tests import a package that the tests run here do not use."""
    if importlib.util.find_spec(package) is None:
        module = ModuleType(package)
        for name in names:
            setattr(module, name, type(name, (), {}))
        sys.modules[package] = module
