"""`samerge push`: what samerge wrote earlier, to the Hub."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from samerge.cli.console import show_json, show_ways
from samerge.cli.shared_options import Manner
from samerge.cli.target import CommitMessage, CreatePr, Private, Revision, check_branch, check_repository


def push(
    *,
    path: Annotated[str, typer.Argument(metavar="PATH", help="What samerge wrote: a folder, or a file.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if it is not there.")],
    private: Private = False,
    revision: Revision = None,
    commit_message: CommitMessage = None,
    create_pr: CreatePr = False,
    manner: Manner,
) -> None:
    """Push an adapter or a model that samerge wrote to the Hub, as --push-to-hub of the merge would have.

        samerge push merged/ ada/merged --private

    Only the files that its record names are uploaded, and the record tells local folders by their last part.
    """
    check_branch(create_pr, revision)
    check_repository(repository)
    from samerge.report.saved import push_saved

    told: dict[str, Any] = {"commit_message": commit_message} if commit_message else {}
    url = push_saved(
        path, repository, private=True if private else None, revision=revision, create_pr=create_pr, **told
    )
    if manner.as_json:
        show_json({"path": path, "url": url})
    elif not manner.quiet:
        show_ways(None, url)
