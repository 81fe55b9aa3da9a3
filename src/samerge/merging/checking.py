"""What an adapter contains, whether it can be merged, and whether it can be served: `samerge check`.

Nothing is merged and nothing is changed. The adapter's tensors are read once, to find broken values; of a base only the
names and shapes, and what the adapter must be compared with.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from samerge.adapters import Adapter, scaling
from samerge.adapters.files import open_adapter
from samerge.adapters.formats.format import Place
from samerge.adapters.formats.place import find
from samerge.adapters.formats.table import DEFAULT, format_of, read_place
from samerge.adapters.servers import VERSIONS, Served, gaps, hints, of_pictures, servability
from samerge.adapters.settings import readable
from samerge.errors import AdapterError, BaseModelError, GraphError, SamergeError
from samerge.merging.alignment import assemble
from samerge.merging.alignment.architecture import base_graph
from samerge.merging.companions import chosen_companions
from samerge.merging.configuration import strangers_of
from samerge.merging.conversion.dora import check_dora
from samerge.merging.inputs import open_base
from samerge.merging.module_weights import fitted
from samerge.merging.trained_parts import check_extras
from samerge.options.module_names import module_type
from samerge.weights import WeightSource
from samerge.weights.hub import resolve_adapter
from samerge.weights.stored import name_of
from samerge.weights.tensorfile import TensorFile

#: Fields of a configuration that make more of an adapter than a plain LoRA, in the order in which they are shown.
_VARIANTS = (
    "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save",
    "trainable_token_indices", "target_parameters", "layer_replication", "layers_to_transform", "exclude_modules",
    "ensure_weight_tying", "alora_invocation_tokens", "use_qalora",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterReport:
    """What `check_adapter` found.

    Args:
        name: the adapter.
        source: where it was read from.
        kind: its `peft_type`.
        base: the base model that it names.
        variants: what it has beyond a plain LoRA, e.g. `use_rslora`, `bias='all'`, `init_lora_weights='pissa'`.
        ranks: how many modules have which rank.
        scales: the smallest and the largest scale of any module; empty when unknown.
        targets: how many layers of each type of module are adapted.
        dtypes: of the tensors, as safetensors names them.
        parameters: how many numbers it holds.
        problems: why it cannot be merged as it is, each with the way out; empty when it can.
        notes: what is worth knowing, and stands in nobody's way.
        serving: for each server why it cannot serve the adapter; empty where it can.
    """

    name: str
    source: str
    kind: str = "unknown"
    base: str | None = None
    variants: tuple[str, ...] = ()
    ranks: Mapping[int, int] | None = None
    scales: tuple[float, ...] = ()
    targets: Mapping[str, int] | None = None
    dtypes: tuple[str, ...] = ()
    parameters: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    serving: Mapping[str, tuple[str, ...]] | None = None

    @property
    def mergeable(self) -> bool:
        """Whether `samerge.merge` takes it as it is, without options."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with `mergeable`."""
        return {**asdict(self), "mergeable": self.mergeable}

    def contents(self) -> list[str]:
        """What it contains, in lines; none where it could not be read."""
        if self.ranks is None:
            return []
        ranks = ", ".join(
            f"{rank} ({count})" if len(self.ranks) > 1 else str(rank) for rank, count in self.ranks.items()
        )
        scales = " to ".join(f"{scale:.4g}" for scale in self.scales) or "unknown"
        lines = [
            f"{self.kind}, rank {ranks or 'unknown'}, scale {scales}, {', '.join(self.dtypes)}, "
            f"{self.parameters:,} parameters",
            *(f"{target} x {count}" for target, count in (self.targets or {}).items()),
        ]
        if self.variants:
            lines.append(", ".join(self.variants))
        return [*lines, f"trained on {self.base}"] if self.base else lines


def check_adapter(
    source: str | Path, base: str | Path | nn.Module | WeightSource | None = None, name: str | None = None
) -> AdapterReport:
    """Look an adapter over, without merging it.

    Args:
        source: a folder, or a hub id.
        base: the base that it shall be merged on: a folder, a hub id, a loaded model, or one that is open already.
        name: what to call it; the last part of `source` by default.

    Returns:
        What it contains, whether it can be merged, and by whom it can be served.

    Raises:
        BaseModelError: the base itself cannot be read.
        HubError: a download failed.

    Example:
        >>> check_adapter("ada/math-lora").mergeable  # doctest: +SKIP
        True
    """
    name = name or PurePath(str(source)).name or str(source)
    opened = _opened(base)
    try:
        folder = resolve_adapter(source)
        place = find(folder, name, str(source))
        if format_of(place) is not DEFAULT:
            return _of_another_format(place, opened, base)
        if place.config is None or place.file is None:
            open_adapter(place.path.parent, name)  # which says what is missing
        config, file = dict(place.config or {}), place.tensors
    except AdapterError as error:
        return AdapterReport(name, str(source), problems=(str(error),))
    problems: list[str] = []
    adapter = None
    try:
        adapter = read_place(place)
    except AdapterError as error:
        problems.append(str(error))
        config = readable(config)
    missing: list[str] = []
    notes: list[str] = []
    if adapter is not None:
        more, notes, missing, _ = _against(adapter, opened, base)
        problems += more
        notes = [*adapter.notes, *notes]
    ranks = _ranks(adapter, file)
    files = tuple(sorted(path.name for path in place.path.parent.iterdir()))
    unread = () if adapter is not None else ("it cannot be read here, and so nothing can be said of it",)
    served = Served(config, ranks, _beside(file), missing or gaps(list(ranks)), files)
    scales = (
        sorted({scaling(config, module) for module in ranks})
        if None not in (config.get("r"), config.get("lora_alpha"))
        else []
    )
    return AdapterReport(
        name,
        str(source),
        kind=str(config.get("peft_type", "unknown")),
        base=config.get("base_model_name_or_path"),
        variants=_variants(config),
        ranks=dict(sorted(Counter(ranks.values()).items())),
        scales=_ends(scales),
        targets=dict(sorted(Counter(module_type(module) for module in ranks).items())),
        dtypes=tuple(sorted({entry.dtype_name for entry in file.entries.values()})),
        parameters=sum(math.prod(entry.shape) for entry in file.entries.values()),
        problems=tuple(problems),
        notes=(*notes, *hints(served)),
        serving={server: tuple(reasons) or unread for server, reasons in servability(served).items()},
    )


def _of_another_format(place: Place, source: WeightSource | None, base: object) -> AdapterReport:
    """What is in an adapter that is none of PEFT's LoRAs."""
    adapter, title = read_place(place), format_of(place).title
    problems, notes, _, scales = _against(adapter, source, base)
    modules = adapter.modules
    pictures = of_pictures(modules)
    others = "llama.cpp reads it, other servers PEFT's" if adapter.format == "gguf" else "servers read PEFT's"
    told = () if pictures else (f"it is {title}, and {others}: samerge convert --format peft",)
    return AdapterReport(
        place.name,
        place.source,
        kind=f"LoRA ({title})",
        base=adapter.config.get("base_model_name_or_path"),
        ranks=dict(sorted(Counter(one.rank for one in modules.values()).items())),
        scales=_ends(scales),
        targets=dict(sorted(Counter(module_type(module) for module in modules).items())),
        dtypes=tuple(sorted({name_of(one.dtype) for one in modules.values()})),
        parameters=sum(one.rank * sum(one.shape) for one in modules.values()),
        problems=tuple(problems),
        notes=(*adapter.notes, *notes, *told),
        serving=dict.fromkeys(VERSIONS, tuple(pictures)) if pictures else None,
    )


def _opened(base: str | Path | nn.Module | WeightSource | None) -> WeightSource | None:
    if base is None or isinstance(base, (str, Path, nn.Module)):
        return open_base(base, required=False)
    return base


def _ends(scales: Collection[float]) -> tuple[float, ...]:
    return tuple({min(scales): None, max(scales): None}) if scales else ()


def _against(
    adapter: Adapter, source: WeightSource | None, base: object
) -> tuple[list[str], list[str], list[str], set[float]]:
    """The problems, the notes, the layers left out and the modules' scales, of an adapter that could be read."""
    problems: list[str] = []
    notes: list[str] = []
    missing: list[str] = []
    seen = source
    try:
        one = fitted([adapter], [adapter.name], source, base if isinstance(base, nn.Module) else None, None)
        [adapter], seen = one.adapters, one.source
        notes += one.notes
        sites = assemble.align([adapter], seen)
        missing = sorted(assemble.missing_layers(sites, seen))
    except (AdapterError, BaseModelError) as error:
        problems.append(str(error))
    for refuse in (check_dora, check_extras, _check_companions):
        try:
            refuse([adapter], None, seen)
        except SamergeError as error:
            problems.append(str(error))
    if seen is not None and source is not None:
        try:
            base_graph(seen)
        except GraphError as error:
            notes.append(f"merging by saliency needs connectivity='local' or a flow graph of your own: {error}")
        if stranger := strangers_of(source, [adapter]):
            notes.append(stranger)
    scales: set[float] = set()
    zero = True
    for module in adapter.modules.values():
        try:
            loaded = module.load()
        except AdapterError as error:
            problems.append(str(error))
            break
        scales.add(loaded.scale)
        zero = zero and module.magnitude is None and not (loaded.scale and loaded.A.any() and loaded.B.any())
    else:
        if adapter.modules and zero:
            notes.append("its update is zero in every layer; was it trained?")
    return problems, notes, missing, scales


def _check_companions(adapters: Sequence[Adapter], choice: str | None, source: WeightSource | None) -> None:
    chosen_companions(adapters, choice)


def _ranks(adapter: Adapter | None, file: TensorFile) -> dict[str, int]:
    """Module -> rank; from the file's shapes alone where the adapter could not be read."""
    if adapter is not None:
        return {module: adapted.rank for module, adapted in adapter.modules.items()}
    found = {}
    for key, entry in sorted(file.entries.items()):
        for part in (".lora_A", ".lora_embedding_A"):
            if part in key and entry.shape and entry.shape[0]:
                found[key.split(part)[0].removeprefix("base_model.model.")] = entry.shape[0]
    return found


def _variants(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    for field in _VARIANTS:
        value = config.get(field)
        if value:
            found.append(field if value is True else f"{field}={json.dumps(value)}")
    if config.get("bias", "none") != "none":
        found.append(f"bias={config['bias']!r}")
    initial = config.get("init_lora_weights", True)
    if isinstance(initial, str) and initial != "gaussian":
        found.append(f"init_lora_weights={initial!r}")
    return tuple(found)


def _beside(file: TensorFile) -> dict[str, list[str]]:
    """What the file holds beside lora_A and lora_B, by kind, in words."""
    kinds = {
        "lora_magnitude_vector": ("dora", "it is a DoRA adapter"),
        "lora_embedding_": ("embedding", "it adapts an embedding (lora_embedding_A and lora_embedding_B)"),
        "token_adapter": ("tokens", "it carries trained token rows (trainable_token_indices)"),
    }
    found: dict[str, dict[str, None]] = {}
    for key in sorted(file.entries):
        if key.endswith((".lora_A.weight", ".lora_B.weight")):
            continue
        stem = module_type(key.removeprefix("base_model.model."))
        kind, words = next(
            (said for part, said in kinds.items() if part in key),
            ("other", f"it carries {stem}, which is neither lora_A nor lora_B"),
        )
        if kind == "other" and stem.split(".")[0] in ("classifier", "score"):
            kind = "head"
        elif kind == "other" and ".base_layer." in key and key.endswith(".weight"):
            kind = "copies"
        elif kind == "other" and key.endswith(".bias"):
            kind, words = "biases", "it carries biases"
        found.setdefault(kind, {})[words] = None
    return {kind: list(said) for kind, said in found.items()}
