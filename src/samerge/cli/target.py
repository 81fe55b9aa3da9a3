"""Where a result goes: a folder, a repository on the Hub, or both."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import stderr
from samerge.cli.shared_options import Overwrite, ReportPage
from samerge.cli.spread import completion
from samerge.errors import HubError, OptionError, SamergeError

if TYPE_CHECKING:
    from samerge.full.streamed_model import StreamedModel
    from samerge.merging.merged_adapter import MergedAdapter

_HUB = "On the Hub"

Private = Annotated[bool, typer.Option("--private", help="A new one is private.", rich_help_panel=_HUB)]
Revision = Annotated[str | None, typer.Option(metavar="BRANCH", help="Branch to push to.", rich_help_panel=_HUB)]
CommitMessage = Annotated[str | None, typer.Option(metavar="TEXT", help="Of the push.", rich_help_panel=_HUB)]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.", rich_help_panel=_HUB)]


@dataclass(frozen=True)
class Target:
    """Where a result goes.

    Args:
        out: folder to write.
        overwrite: replace what is there already.
        report: a page of HTML to write about it.
        push_to_hub: repository to push to.
        private: whether a new repository is private.
        revision: branch to push to.
        commit_message: of the push.
        create_pr: open a pull request instead of committing.
    """

    out: Annotated[
        str | None, typer.Option("--out", "--output", "-o", metavar="PATH", help="The folder, or the file, to make.")
    ] = None
    overwrite: Overwrite = False
    report: ReportPage = None
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Push to this repository.", rich_help_panel=_HUB)
    ] = None
    private: Private = False
    revision: Revision = None
    commit_message: CommitMessage = None
    create_pr: CreatePr = False

    def check(self, what: str | None = None, marker: str | None = None) -> None:
        """Refuse, before any long work, a folder that may not be written and a repository id that cannot be.

        Args:
            what: what has to go somewhere, for messages; None where nothing has to.
            marker: the file that shows that what is in the folder may be replaced; that of an adapter by default.

        Raises:
            OutputExistsError: the folder is taken, or cannot be made.
            OptionError: there is nowhere to put it, or the repository id is not valid.
        """
        if what and not self.out and not self.push_to_hub:
            raise OptionError(f"nowhere to put the {what}; give --out FOLDER, --push-to-hub USER/NAME, or both")
        self._check_rest()
        if self.out:
            check_folder(self.out, self.overwrite, marker)

    def _check_rest(self) -> None:
        """Refuse a report that cannot be written, and what does not go with the repository, or without one.

        Raises:
            OptionError: it does not.
            OutputExistsError: the report's place is taken.
        """
        if self.report:
            from samerge.report.page.file import check_page

            check_page(self.report)
        hub = ("private", "revision", "commit_message", "create_pr")
        given = [f"--{name.replace('_', '-')}" for name in hub if getattr(self, name)]
        if given and not self.push_to_hub:
            raise OptionError(f"{given[0]} is for a repository on the Hub; give --push-to-hub USER/NAME, too")
        check_branch(self.create_pr, self.revision)
        if self.push_to_hub:
            check_repository(self.push_to_hub, "--push-to-hub ")

    def deliver(self, result: MergedAdapter | StreamedModel, quiet: bool, **sized: Any) -> str | None:
        """Save and push; the address of what was pushed. A push that fails loses nothing.

        Args:
            result: what was made.
            quiet: say nothing of it.
            **sized: what saving takes beside, as the size of a model's files.
        """
        if self.out:
            saved = result.save(self.out, overwrite=self.overwrite, **sized)
            if not quiet:
                stderr().print(f"saved in {saved}", markup=False)
        if self.report:
            from samerge.report.report import read_report

            made = read_report(saved) if self.out else result.report  # what was written knows its format
            made.to_html(self.report, self.out or self.push_to_hub)
            if not quiet:
                stderr().print(f"report in {self.report}", markup=False)
        if not self.push_to_hub:
            return None
        told: dict[str, Any] = {"commit_message": self.commit_message} if self.commit_message else {}
        try:
            return result.push_to_hub(
                self.push_to_hub,
                private=True if self.private else None,
                revision=self.revision,
                create_pr=self.create_pr,
                **told,
                **sized,
            )
        except HubError as error:
            kept = saved if self.out else result.save(Path(tempfile.mkdtemp(prefix="samerge-")) / "merged", **sized)
            again = f"samerge push {kept} {self.push_to_hub}"
            raise HubError(f"{error}. It is not lost: it is in {kept}, and {again} pushes it from there") from error


@dataclass(frozen=True)
class AdapterTarget(Target):
    """Where an adapter goes, and in which format.

    Args:
        format: its name; the sources' own by default, where all have one.
    """

    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=completion("peft", "kohya", "diffusers", "mlx", "gguf"),
            help="What to write: peft, kohya, diffusers, mlx or gguf. --out is a file for kohya, diffusers and gguf. "
            "Default: as the adapters came, where all came alike; else peft.",
        ),
    ] = None

    def check(self, what: str | None = None, marker: str | None = None, sources: Sequence[str] = ()) -> None:
        """As `Target.check`, for a file where the format is one.

        Args:
            what: what has to go somewhere, for messages; None where nothing has to.
            marker: the file that shows that what is in the folder may be replaced.
            sources: adapters whose format is written where none is named; they are looked at only then.

        Raises:
            OutputExistsError: the folder or file is taken, or cannot be made.
            OptionError: there is nowhere to put it, the format is not known, or the repository id is not valid.
        """
        from samerge.adapters.atomic import absolute, refuse_sources
        from samerge.adapters.formats.table import named
        from samerge.adapters.writable import check_file

        known = self.format or (came_as(sources) if self.out and sources else "peft")
        if known is None:  # the merge itself says why
            self._check_rest()
            return
        format = named(known)
        target = absolute(format.target(self.out or ""))
        if self.out and self.overwrite:
            refuse_sources(target, sources)
        if format.file is None or not self.out:
            super().check(what, marker)
            return
        self._check_rest()
        check_file(target, self.overwrite)

    def place(self, result: MergedAdapter) -> tuple[str, str] | None:
        """Where the adapter was written, and how to use it; None where it was not."""
        from samerge.adapters.formats.table import named

        if not self.out:
            return None
        format = named(self.format or result.format)
        path = str(format.target(self.out)) if format.file else self.out
        return path, format.use.format(path=path)

    def deliver(self, result: MergedAdapter | StreamedModel, quiet: bool, **sized: Any) -> str | None:
        """As `Target.deliver`."""
        return super().deliver(result, quiet, **({"format": self.format} if self.format else {}), **sized)


def came_as(sources: Sequence[str]) -> str | None:
    """The format that a merge of these is written in where nothing else is said; None where one cannot be read."""
    from samerge.adapters.formats.place import find
    from samerge.adapters.formats.table import common, format_of
    from samerge.weights.hub import resolve_adapter

    try:
        return common(format_of(find(resolve_adapter(source), source, source)).family for source in sources)
    except SamergeError:
        return None


def check_folder(out: str, overwrite: bool, marker: str | None = None) -> None:
    """Refuse a folder that may not be written.

    Args:
        out: the folder.
        overwrite: replace what is there already.
        marker: the file that shows that what is there may be replaced; that of an adapter by default.

    Raises:
        OutputExistsError: it is taken, or cannot be made.
    """
    from samerge.adapters.atomic import absolute, check_free
    from samerge.adapters.writable import check_parent
    from samerge.weights.hub import CONFIG_NAME

    target = absolute(out)
    check_free(target, overwrite, marker or CONFIG_NAME)
    check_parent(target)


def check_branch(create_pr: bool, revision: str | None) -> None:
    """Refuse a pull request that is to go to a branch.

    Raises:
        OptionError: it is.
    """
    if create_pr and revision:
        raise OptionError(
            f"--create-pr opens a pull request against the main branch and --revision {revision} names another; leave "
            f"one of them out"
        )


def check_repository(repository: str, option: str = "") -> None:
    """Refuse what can be no repository.

    Args:
        repository: what the user wrote.
        option: before it, for messages.

    Raises:
        OptionError: it can be none.
    """
    from samerge.weights.hub_errors import REPOSITORY_ID, is_repository_id

    if not is_repository_id(repository):
        raise OptionError(f"{option}{repository!r}: {REPOSITORY_ID}")
