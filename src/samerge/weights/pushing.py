"""The Hugging Face Hub, written: a folder pushed as one commit. huggingface_hub is imported where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from samerge.errors import OptionError
from samerge.weights.hub_errors import hub_errors


class Upload(TypedDict, total=False):
    """How something is pushed; each may be left out.

    Args:
        token: an access token with write permission; the one of `hf auth login` by default.
        private: whether a new repository is private; one that exists stays as it is. Default: as the account says.
        revision: branch to commit to, created if missing; the main branch by default.
        commit_message: the first line of the commit.
        create_pr: open a pull request instead of committing.
    """

    token: str | None
    private: bool | None
    revision: str | None
    commit_message: str
    create_pr: bool


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a merged adapter made with samerge",
    create_pr: bool = False,
    ready: Callable[[str], object] = lambda full_id: None,
) -> str:
    """Upload a folder to a model repository on the Hub, as one commit; the repository is created if missing.

    Args:
        folder: what `write_adapter` wrote.
        repo_id: `user/name`, or `name` for a repository of the user who is logged in.
        token, private, revision, commit_message, create_pr: see `Upload`.
        ready: called with the full `user/name` before the upload; may change the folder.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        OptionError: `folder` is no folder, or `create_pr` comes together with `revision`.
        HubError: the Hub refuses or cannot be reached.

    Example:
        >>> push_folder("merged", "ada/merged", private=True)  # doctest: +SKIP
        'https://huggingface.co/ada/merged'
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise OptionError(f"pushing {folder} to {repo_id}: there is no such folder; save the merge there first")
    if create_pr and revision is not None:
        raise OptionError(
            f"pushing {folder} to {repo_id}: a pull request is opened against the main branch, so create_pr=True does "
            f"not go with revision={revision!r}; leave one of them out"
        )
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="samerge")
    doing = f"pushing {path.name} to {repo_id!r}"
    with hub_errors(doing, repo_id, pushing=True):
        # A bare name means "mine": creating it answers with the full id, which the other routes ask for. Anyone may
        # open a pull request, but only the owner may create: what exists is not created once more.
        known = "/" in repo_id and api.repo_exists(repo_id)
        full_id = repo_id if known else api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    ready(full_id)
    with hub_errors(doing, repo_id, pushing=True):
        if revision is not None:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=full_id, folder_path=path, commit_message=commit_message, revision=revision, create_pr=create_pr
        )
    # no pull request is opened when the repository has these very files already
    return str(commit.pr_url or f"{api.endpoint}/{full_id}")
