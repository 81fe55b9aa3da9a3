"""What the Hugging Face Hub, or the way to it, refuses: told with the way out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from samerge.errors import HubError, first_line

#: What the system puts before its words.
_ERRNO = re.compile(r"\[(Errno|WinError) -?\d+\] ")
#: Our own words: those of huggingface_hub name an argument of its own.
REPOSITORY_ID = "a repository id is 'name' or 'user/name', of letters, digits, '-', '_' and '.'; check the name"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def is_repository_id(name: str) -> bool:
    """Whether a name can be that of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextlib.contextmanager
def hub_errors(doing: str, repo_id: str, pushing: bool = False) -> Iterator[None]:
    """Raise whatever huggingface_hub raises as a HubError that says what was being done and the way out."""
    try:
        yield
    except Exception as error:  # huggingface_hub's own, httpx's or requests' by version, OSError, ValueError
        # an upload's error is wrapped in a RuntimeError that says only which file it was
        told = error.__cause__ if type(error) is RuntimeError and isinstance(error.__cause__, Exception) else error
        said = _ERRNO.sub("", first_line(told)) if str(told).strip() else "no details"
        cause = "" if _invalid(told) else f"{type(told).__name__}: {said}; "
        raise HubError(f"{doing}: {cause}{_way_out(told, repo_id, pushing)}") from error


def _way_out(error: Exception, repo_id: str, pushing: bool) -> str:
    from huggingface_hub import errors

    status = _status(error)
    if _invalid(error):
        return REPOSITORY_ID
    if isinstance(error, errors.GatedRepoError):
        return f"ask for access on the page of {repo_id} on the Hub, and {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "check the revision: a branch, a tag or a commit of this repository"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"check the name; if the repository is private or gated, {_LOGIN} that may read it"
    if status == 401:
        if "Invalid credentials" in str(error):
            return f"the token is not valid: {_LOGIN} that is"
        return f"the Hub does not know who asks, or has no such repository: check the name, and {_LOGIN}"
    if status == 403:
        return f"this token may not do that: {_LOGIN} that has the permission, or choose a namespace of yours"
    if status == 404:
        return "check the name"
    if status is not None:
        return f"the Hub answered {status}; try again later, and see https://status.huggingface.co"
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        if pushing:
            return (
                f"nothing was pushed, the Hub is offline or out of reach: check the connection and HF_HUB_OFFLINE; "
                f"what is saved in a folder goes with `samerge push FOLDER {repo_id}` where there is a network"
            )
        return (
            f"it is not in the cache, and the Hub is offline or out of reach: check the connection and HF_HUB_OFFLINE, "
            f"run `hf download {repo_id}` where there is a network, or give a folder"
        )
    return "check the connection, and try again"


def _invalid(error: Exception) -> bool:
    """Whether the name can be that of no repository."""
    from huggingface_hub import errors

    return isinstance(error, errors.HFValidationError)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or what it was raised from, carries."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None
