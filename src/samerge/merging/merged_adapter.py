"""The result of a merge: one LoRA adapter, to look at, save, push to the Hub, or put on a live model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from samerge.adapters.layouts import Layout, stored_tensors
from samerge.errors import OptionError
from samerge.linalg.factors import LoraFactors
from samerge.report.card import model_card
from samerge.report.record import Record
from samerge.report.report import Report
from samerge.weights.pushing import Upload

if TYPE_CHECKING:
    from peft import LoraConfig

    from samerge.adapters.formats.format import Content
    from samerge.weights.pipeline import Pipeline


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
        format: what it is saved as where nothing else is said: the sources' format, where all have one.
        metadata: fields of the sources' headers that hold for it, too.
        base: the base model's configuration; empty where none was given.
        asked: whether `format` was chosen, and did not follow from the sources'.
    """

    factors: Mapping[str, LoraFactors] = field(repr=False)
    layouts: Mapping[str, Layout] = field(repr=False)
    settings: Mapping[str, Any]
    report: Report = field(repr=False)
    extras: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    companions: tuple[Path, ...] = ()
    format: str = "peft"
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    base: Mapping[str, Any] = field(default_factory=dict, repr=False)
    asked: bool = field(default=False, repr=False)

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

    def save(self, path: str | Path, overwrite: bool = False, format: str | None = None) -> Path:
        """Write the adapter, with the record of the merge, all or nothing.

        Args:
            path: the folder to make, or the file: one without the ending, or an existing folder, gets one.
            overwrite: replace an adapter that is there already.
            format: "peft", "kohya", "diffusers", "mlx" or "gguf"; by default that of the sources, where all have one,
                and PEFT's otherwise. PEFT's has `samerge.json` and a model card beside the weights;
                `PeftModel.from_pretrained(base, path)` loads it.

        Returns:
            What was written.

        Raises:
            OptionError: there is no such format.
            AdapterError: the format has no place for what the adapter holds.
            OutputExistsError: the place is taken and `overwrite` is False, holds no adapter, or one that was merged.
        """
        from samerge.adapters.atomic import refuse_sources
        from samerge.adapters.formats.table import named, write

        name = format or self.format
        if overwrite:
            refuse_sources(
                Path(named(name).target(path)), [one.source for one in self.report.record.inputs if one.source]
            )
        return write(self._content(self._record(name), format), name, path, overwrite)

    def _record(self, format: str) -> Record:
        """The record of what is written in a format; that it is PEFT's need not be said."""
        record = self.report.record
        return record if format == "peft" else replace(record, output=replace(record.output, format=format))

    def _content(self, record: Record | None, chosen: str | None) -> Content:
        from samerge.adapters.formats.format import Content

        return Content(
            self.factors,
            self.layouts,
            self.settings,
            self.extras,
            self.metadata,
            {} if record is None else record.json(),
            "" if record is None else model_card(record),
            self.companions,
            self.base,
            asked=self.asked or (chosen is not None and not chosen == self.format == "peft"),
        )

    def _save_to_share(self, folder: Path, chosen: str | None) -> Path:
        """A folder for the Hub: a file of weights gets its card and its record beside it, and none in its header."""
        from samerge.adapters.formats.table import named, write
        from samerge.adapters.writer import write_text

        format = chosen or self.format
        file = named(format).file
        if file is None:
            return self.save(folder, format=chosen)
        record = self._record(format)
        write(self._content(None, chosen), format, folder / file)
        write_text(folder, record.json(), model_card(record))
        return folder

    def push_to_hub(self, repo_id: str, *, format: str | None = None, **how: Unpack[Upload]) -> str:
        """Upload the adapter, its record and its card to the Hugging Face Hub.

        Args:
            repo_id: `user/name`; made if it is not there.
            format: as in `save`.
            **how: `token`, `private`, `revision`, `commit_message` and `create_pr`; see `Upload`.

        Returns:
            The URL of the repository or pull request.

        Raises:
            HubError: the Hub refused; says what to do.
        """
        from samerge.report.uploading import upload

        how = {"commit_message": "Add merged LoRA adapter", **how}
        return upload(lambda folder: self._save_to_share(folder, format), "adapter", repo_id, **how)

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return self.report._repr_html_()

    def apply_to(self, model: nn.Module | Pipeline, adapter_name: str) -> None:
        """Add the merged adapter to a live `PeftModel`, all or nothing; the active adapter stays the same.

        Args:
            model: a `PeftModel` of the same base, a model that adapters were loaded into, or a pipeline of such.
            adapter_name: a name that is not taken yet.

        Raises:
            OutputExistsError: the name is taken.
            BaseModelError: the adapter does not fit the model; nothing was added.

        Example:
            `merged.apply_to(model, "merged"); model.set_adapter("merged")`
        """
        from samerge.adapters.install import install
        from samerge.adapters.live_pipeline import install_on

        if not isinstance(model, nn.Module):
            install_on(model, adapter_name, self.factors, self.layouts, self.extras)
            return
        install(model, adapter_name, self.config, self.tensors())
