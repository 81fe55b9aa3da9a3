"""The result of a merge: one LoRA adapter, to look at, save, push to the Hub, or put on a live model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from samerge.adapters.layouts import Layout, stored_tensors
from samerge.errors import OptionError
from samerge.linalg.factors import LoraFactors
from samerge.report.card import model_card
from samerge.report.report import Report

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class MergedAdapter:
    """One merged LoRA adapter in the servable profile.

    Args:
        factors: for each module, by its name in the base model, A (r, in) and B (out, r) with the scale folded in.
        layouts: how PEFT stores each module.
        settings: what `adapter_config.json` says.
        report: what the merge did.
        extras: what the adapter carries beside its factors (biases, fully trained modules), by name in the file.
        companions: files to copy beside it when it is saved.
    """

    factors: Mapping[str, LoraFactors] = field(repr=False)
    layouts: Mapping[str, Layout] = field(repr=False)
    settings: Mapping[str, Any]
    report: Report = field(repr=False)
    extras: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    companions: tuple[Path, ...] = ()

    @property
    def config(self) -> LoraConfig:
        """PEFT's configuration of the merged adapter."""
        from peft import LoraConfig

        settings = {key: value for key, value in self.settings.items() if key != "peft_type"}
        return LoraConfig(**settings)

    def delta(self, module: str) -> Tensor:
        """The dense merged update of a module, in the orientation and shape of its base weight, in float32. For checks.

        Raises:
            OptionError: no such module.
        """
        if module not in self.factors:
            raise OptionError(f"the merged adapter has no module {module!r}; it has e.g. {list(self.factors)[:3]}")
        return self.layouts[module].delta(self.factors[module].to(dtype=torch.float32))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of `adapter_model.safetensors` under PEFT's names, sorted."""
        state = {**stored_tensors(self.factors, self.layouts), **self.extras}
        return dict(sorted(state.items()))

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the adapter in PEFT's format, with `samerge.json` and a model card beside it, all or nothing.

        Args:
            path: the folder to make; `PeftModel.from_pretrained(base, path)` loads it.
            overwrite: replace an adapter that is there already.

        Returns:
            The folder.

        Raises:
            OutputExistsError: the folder exists and `overwrite` is False, or it is no adapter folder.
        """
        from samerge.adapters.writer import write_adapter

        record = self.report.record
        card = model_card(record)
        return write_adapter(
            path, self.tensors(), self.settings, record.json(), card, overwrite=overwrite, beside=self.companions
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add merged LoRA adapter",
        create_pr: bool = False,
    ) -> str:
        """Upload the adapter, its record and its card to the Hugging Face Hub.

        Args:
            repo_id: `user/name`; made if it is not there.
            token: access token; the one of `hf auth login` by default.
            private: whether a new repository is private.
            revision: branch to commit to.
            commit_message: of the commit.
            create_pr: open a pull request instead of committing.

        Returns:
            The URL of the commit or pull request.

        Raises:
            HubError: the Hub refused; says what to do.
        """
        from samerge.report.sharing import shareable
        from samerge.weights.hub import push_folder

        with shareable(self.save, "adapter") as saved:
            return push_folder(
                saved,
                repo_id,
                token=token,
                private=private,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )

    def apply_to(self, model: nn.Module, adapter_name: str) -> None:
        """Add the merged adapter to a live `PeftModel`, all or nothing; the active adapter stays the same.

        Args:
            model: a `PeftModel` of the same base.
            adapter_name: a name that is not taken yet.

        Raises:
            OutputExistsError: the name is taken.
            BaseModelError: the adapter does not fit the model; nothing was added.

        Example:
            `merged.apply_to(model, "merged"); model.set_adapter("merged")`
        """
        from samerge.adapters.install import install

        install(model, adapter_name, self.config, self.tensors())
