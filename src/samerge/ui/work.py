"""What the page does, without the page: look at adapters, merge them, pack, save and push the result."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samerge.adapters import Adapter
from samerge.errors import OptionError, SamergeError
from samerge.merging.between_adapters import Conflicts, conflicts
from samerge.merging.checking import AdapterReport, check_adapter
from samerge.merging.inputs import open_adapters, open_base
from samerge.merging.merge_adapters import Shared, merge_opened
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import plan
from samerge.parallel.progress import Progress
from samerge.ui.places import Places
from samerge.weights import WeightSource
from samerge.weights.hub import default_name
from samerge.weights.hub_errors import is_repository_id

#: Adapters that the page has a slider for.
MOST = 16


@dataclass(frozen=True)
class Looked:
    """Adapters and their base, opened and looked over.

    Args:
        base: as the visitor named it.
        given: the adapters as the visitor named them.
        adapters: opened; none where one cannot be read.
        source: the base's weights; None where none was named.
        reports: what each adapter contains.
        conflicts: how they agree; None where they cannot be compared.
        apart: why they cannot be compared.
        shared: what merges of them have in common.
    """

    base: str
    given: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    source: WeightSource | None
    reports: tuple[AdapterReport, ...]
    conflicts: Conflicts | None = None
    apart: str = ""
    shared: Shared = field(default_factory=Shared)

    @property
    def names(self) -> list[str]:
        """Of the adapters."""
        return [report.name for report in self.reports]


def look(places: Places, base: str | None, given: Sequence[str] | None, bars: Progress) -> Looked:
    """Open what a visitor named, and say what is in it.

    Args:
        places: what may be read.
        base: a folder or a repository; empty for none.
        given: the adapters likewise.
        bars: where to report progress.

    Raises:
        OptionError: nothing was named, too many adapters, or what is not in the places.
        BaseModelError: the base cannot be read.
        HubError: the base cannot be downloaded.
    """
    asked, base = tuple(dict.fromkeys(given or ())), (base or "").strip()
    if not 1 <= len(asked) <= MOST:
        problem = "choose at least one adapter" if not asked else f"this page takes {MOST}"
        raise OptionError(f"{len(asked)} adapters were chosen; {problem} (samerge merge takes any number)")
    place = places.source(base, "base model") if base else None
    sources = _named([places.source(one, "adapter") for one in asked])
    reports: list[AdapterReport] = []
    with bars.task("reading", 1 + len(sources)) as advance:
        source = open_base(place, required=False)
        advance(1)
        for name, path in sources.items():
            try:
                reports.append(check_adapter(path, source, name))
            except SamergeError as error:
                reports.append(AdapterReport(name, path, problems=(str(error),)))
            advance(1)
    try:
        adapters = tuple(open_adapters(None, sources))
    except SamergeError:  # the report of the adapter says why
        return Looked(base, asked, (), source, tuple(reports))
    found, apart = None, ""
    if len(adapters) > 1:
        try:
            with bars.task("comparing", 1):
                found = conflicts(adapters)
        except SamergeError as error:
            apart = str(error)
    return Looked(base, asked, adapters, source, tuple(reports), found, apart)


def merged(
    looked: Looked,
    weights: Sequence[float],
    method: str | None,
    options: dict[str, Any],
    bars: Progress,
) -> MergedAdapter:
    """Merge, as `samerge.merge` does.

    Args:
        looked: the adapters and the base.
        weights: one for each adapter, in order; what is beyond them is not looked at.
        method: its name; None for the default.
        options: as `samerge.merge` takes them; None means not given.
        bars: where to report progress.

    Raises:
        OptionError: an adapter cannot be read, or an option is out of its range.
        SamergeError: as `samerge.merge`.
    """
    if not looked.adapters:
        raise OptionError("an adapter cannot be read; see above, and leave it out")
    chosen = dict(zip(looked.names, weights, strict=False))
    return merge_opened(looked.adapters, looked.source, looked.base, plan(method, options, chosen), bars, looked.shared)


def packed(result: MergedAdapter, folder: Path) -> Path:
    """The result as one zip file, in a fresh folder below another.

    Args:
        result: what was merged.
        folder: where the fresh folder is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="merged-", dir=folder))
    try:
        written = result.save(fresh / "merged")
        files = sorted(path for path in written.rglob("*") if path.is_file()) if written.is_dir() else [written]
        with zipfile.ZipFile(fresh / "merged.zip", "w", zipfile.ZIP_STORED) as archive:  # weights hardly shrink
            for path in files:
                archive.write(path, path.relative_to(fresh))
        shutil.rmtree(written) if written.is_dir() else written.unlink()
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return fresh / "merged.zip"


def saved(places: Places, result: MergedAdapter, text: str) -> Path:
    """Save the result below the folders, whole or not at all.

    Raises:
        OptionError: the place is not below them.
        OutputExistsError: the place is taken.
    """
    return result.save(places.target(text))


def pushed(places: Places, result: MergedAdapter, repository: str, token: str, private: bool) -> str:
    """Push the result to the Hub; its address there.

    Args:
        places: whose login may be used.
        result: what was merged.
        repository: `user/name`.
        token: the visitor's own; empty for this machine's login, where that may be used.
        private: whether a new repository is private.

    Raises:
        OptionError: no token where one must be given, or no name of a repository.
        HubError: the Hub refused.
    """
    repository, token = (repository or "").strip(), (token or "").strip()
    if not is_repository_id(repository):
        raise OptionError(f"pushing to {repository!r}: it must be the name of a repository, user/name")
    if not token and not places.own_login:
        raise OptionError(f"pushing to {repository!r} needs an access token of yours that may write there")
    return result.push_to_hub(repository, token=token or None, private=True if private else None)


def _named(places: Sequence[str]) -> dict[str, str]:
    """Names for the adapters, the last parts of where they lie, each another.

    Example:
        >>> _named(["/loras/math", "ada/math@v2", "runs/style.safetensors"])
        {'math': '/loras/math', 'math-2': 'ada/math@v2', 'style': 'runs/style.safetensors'}
    """
    found: dict[str, str] = {}
    for place in places:
        stem = default_name(place)
        names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, len(places) + 1))
        found[next(name for name in names if name not in found)] = place
    return found
