"""Whether what a merge read and wrote is still what its record says: `samerge verify`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samerge.adapters import CONFIG_NAME
from samerge.adapters.formats.table import read_any
from samerge.adapters.model import LIVE, MEMORY
from samerge.adapters.writer import HASH_FIELD, tensors_digest
from samerge.errors import AdapterError, BaseModelError, HubError, OptionError, SamergeError
from samerge.options.calibration import IN_MEMORY
from samerge.options.option import OWN_GRAPH
from samerge.report.reading import raw_record
from samerge.weights.fields import NUMBER, OBJECT, TEXT, check_fields, list_of, table_of
from samerge.weights.hub import RECORD_NAME, resolve_adapter, resolve_base
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin, sha256

#: What two runs of one merge may differ by, as a share of the largest entry of a layer: sums in another order.
_ROUNDING = 1e-3

_KINDS = {
    "inputs": list_of(OBJECT),
    "files": table_of(TEXT),
    "method": TEXT,
    "options": OBJECT,
    "base": OBJECT,
    "output": OBJECT,
}
_INPUT = {"name": TEXT, "source": TEXT, "weight": NUMBER, "sha256": table_of(TEXT)}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: it is, as in "input math".
        sound: whether it is as recorded; None where that cannot be told.
        told: what was found.
    """

    what: str
    sound: bool | None
    told: str


def verify(folder: str | Path, reproduce: bool = False) -> list[Finding]:
    """Compare a merge's files, and those that it was made of, with what its record says.

    Args:
        folder: what a merge wrote, a folder or a file.
        reproduce: merge again, too, with the recorded options, and compare the updates. Base and adapters are read here
            or from the Hub's cache; the network is not asked.

    Returns:
        A finding for each file of the output and each input, and one for the merge that was made again.

    Raises:
        AdapterError: there is no readable record.

    Example:
        >>> all(finding.sound for finding in verify("merged/"))  # doctest: +SKIP
        True
    """
    folder = Path(folder)
    origin = Origin(f"verifying {folder}", AdapterError)
    record = raw_record(folder, origin)
    check_fields(record, _KINDS, RECORD_NAME, origin, needed=("inputs",))
    for entry in record["inputs"]:
        check_fields(entry, _INPUT, RECORD_NAME, origin, needed=("name",))
    outputs = _own(folder, origin) if folder.is_file() else _outputs(folder, record, origin)
    found = [*outputs, *(_input(entry, origin) for entry in record["inputs"])]
    if reproduce:
        found.append(_again(folder, record))
    return found


def _outputs(folder: Path, record: Mapping[str, Any], origin: Origin) -> Iterator[Finding]:
    recorded: Mapping[str, str] = record.get("files") or {}
    if not recorded:
        yield Finding("output", None, "the record names no digests of what was written; an older version wrote it")
    for name, digest in sorted(recorded.items()):
        yield _compared(f"output {name}", folder, name, digest, origin)


def _own(file: Path, origin: Origin) -> Iterator[Finding]:
    """A file whose record is in its own header: what stands behind that has a digest there, the header has none."""
    what = f"output {file.name}"
    said = None if file.suffix == ".gguf" else TensorFile(file, origin).metadata.get(HASH_FIELD)
    if said is None:
        yield Finding(what, None, "its header names no digest of its tensors")
        return
    now = tensors_digest(file, origin)
    sound = now == said
    told = f"as recorded, sha256 {now[:12]}" if sound else f"are others now: sha256 {now[:12]}, recorded {said[:12]}"
    yield Finding(
        what, sound, f"its tensors {told}; the record itself is in the same file, and could have been changed"
    )


def _input(entry: Mapping[str, Any], origin: Origin) -> Finding:
    what = f"input {entry['name']}"
    recorded: Mapping[str, str] = entry.get("sha256") or {}
    source = entry.get("source")
    if not recorded or source is None:
        here = "; an older version wrote it" if source and os.path.lexists(source) else ", as of a model in memory"
        return Finding(what, None, f"the record has no digest of it{here}")
    place = _place(source)
    if place is None:
        return Finding(what, None, f"{source} is not here, and not in the Hub's cache")
    folder = place.parent if place.is_file() else place
    found = [_compared(what, folder, name, digest, origin) for name, digest in recorded.items()]
    return next((finding for finding in found if finding.sound is not True), found[0])


def _place(source: str) -> Path | None:
    """Where an adapter or a checkpoint lies; None where it is not on this machine."""
    for resolve in (resolve_adapter, resolve_base):
        with contextlib.suppress(AdapterError, BaseModelError, HubError):
            return resolve(source, local_files_only=True)
    return None


def _compared(what: str, folder: Path, name: str, digest: str, origin: Origin) -> Finding:
    if Path(name).is_absolute() or ".." in Path(name).parts or name != Path(name).as_posix():
        return Finding(what, False, f"the record names {name!r}, which is no file of the folder")
    if not os.path.lexists(folder / name):
        return Finding(what, False, f"{folder / name} is gone")
    try:
        now = sha256(folder / name, origin)
    except SamergeError as error:
        return Finding(what, False, str(error))
    if now != digest:
        return Finding(what, False, f"{folder / name} is another one now: sha256 {now[:12]}, recorded {digest[:12]}")
    return Finding(what, True, f"as recorded, sha256 {digest[:12]}")


def _again(folder: Path, record: Mapping[str, Any]) -> Finding:
    """Merge once more and compare the update of every module; what cannot be made again is no worse for it."""
    what = "merged again"
    of_models = record.get("outside") or (folder.is_dir() and not (folder / CONFIG_NAME).is_file())
    if of_models or record.get("method") in ("compress", "extract", "convert"):
        return Finding(what, None, "only merges of adapters are made again")
    with tempfile.TemporaryDirectory() as parent:
        try:
            again = _merged(record, Path(parent) / "again")
        except (SamergeError, TypeError) as error:  # TypeError: options of another version
            return Finding(what, None, f"it cannot be made again: {error}")
        try:
            found = _alike(what, folder, again)
        except SamergeError as error:
            return Finding(what, False, str(error))
    doubts = {
        "its base was a model in memory, which may not have been that of files": (record.get("base") or {}).get("live"),
        "its base was run, on texts that may have been others or with another rounding": (
            record.get("options") or {}
        ).get("calibration"),
    }
    doubt = next((told for told, there in doubts.items() if there), None)
    return found if found.sound is not False or doubt is None else Finding(what, None, f"{found.told}; {doubt}")


def _merged(record: Mapping[str, Any], target: Path) -> Path:
    """The merge of a record, from local files and the Hub's cache alone.

    Raises:
        SamergeError: the record does not hold all of it, a source is not here, or this version merges in another way.
    """
    from samerge.merging.merge_adapters import merge

    options = {key: value for key, value in (record.get("options") or {}).items() if key != "weights"}
    if options.get("connectivity") == OWN_GRAPH:
        raise OptionError("its flow graph was one of the user's own, of which the record says no more")
    if options.get("calibration") == IN_MEMORY:
        raise OptionError("its base was run on inputs in memory, of which the record says no more")
    places = {}
    for entry in record["inputs"]:
        name, source = entry["name"], entry.get("source")
        place = None if source is None else _place(source)
        if place is None:
            in_memory = source is None or source.startswith((LIVE, MEMORY))
            where = "was in memory" if in_memory else f"({source}) is not here, and not in the Hub's cache"
            raise AdapterError(f"the adapter {name} {where}")
        places[name] = place
    base = (record.get("base") or {}).get("name")
    merged = merge(
        None if base is None else resolve_base(base, local_files_only=True),
        places,
        method=record.get("method"),
        weights={entry["name"]: entry.get("weight", 1.0) for entry in record["inputs"]},
        progress=False,
        **options,
    )
    return merged.save(target, format=(record.get("output") or {}).get("format") or "peft")


def _alike(what: str, folder: Path, again: Path) -> Finding:
    one, other = read_any(folder, "recorded"), read_any(again, "again")
    if set(one.modules) != set(other.modules):
        return Finding(what, False, "it has other modules")
    worst, where = 0.0, ""
    for module, adapted in one.modules.items():
        before = adapted.load().to(dtype=torch.float32).delta()
        after = other.modules[module].load().to(dtype=torch.float32).delta()
        if before.shape != after.shape:
            return Finding(what, False, f"{module} has another shape")
        size = float(before.abs().max()) or 1.0
        off = float((before - after).abs().max()) / size
        worst, where = max((worst, where), (off, module))
    rounding = max(_ROUNDING, 8 * torch.finfo(one.dtype).eps)
    told = f"the updates differ by at most {worst:.2g} of their layer's largest entry"
    return Finding(what, worst <= rounding, told + (f", in {where}" if worst > rounding else ""))
