"""What the page may read and write: files below the folders that were named, and repositories of the Hub.

Whatever a visitor writes into a field goes through here before anything is opened. A path is followed to its end (`..`,
links) before it is compared with the folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from samerge.errors import OptionError
from samerge.weights.hub import CONFIG_NAME

#: `name`, `user/name`, `user/name/folder`, each with `@revision` or without.
_PART = r"[A-Za-z0-9_][\w.-]*"
_HUB_ID = re.compile(rf"{_PART}(/{_PART})*(@{_PART}(/{_PART})*)?", re.ASCII)
#: Letters of a path, at most.
_LONGEST = 1000
#: What begins as a path does, or holds what only a path has.
_PATH = re.compile(r"[./~]|[A-Za-z]:|.*\\")


@dataclass(frozen=True)
class Places:
    """Folders, followed to their ends, and whose login the Hub is asked with.

    Args:
        folders: files below these may be read and written; none: the Hub alone.
        own_login: whether who comes may use this machine's login of the Hub, and not only a token of their own.
    """

    folders: tuple[Path, ...] = ()
    own_login: bool = False

    def source(self, text: str, what: str) -> str:
        """The folder or file in full, or the repository of the Hub, that a visitor named.

        Args:
            text: as it was written; a relative path is one below a folder that was named.
            what: what it is, for messages.

        Raises:
            OptionError: it is neither below the folders nor the name of a repository, or a link leads outside.
        """
        text = _written(text, what)
        given = _path(text)
        roots = (*self.folders, Path.cwd())
        for root in roots:
            place = end_of(root / given)
            if self.holds(place) and os.path.exists(place):
                self._check_links(place, what, text)
                return str(place)
        # What exists here is read before a repository of the same name, so that such a name is none of the Hub's.
        here = any(os.path.lexists(root / given) for root in roots)
        if here or not _HUB_ID.fullmatch(text):
            raise OptionError(self._refusal(text, what, here or bool(_PATH.match(text))))
        return text

    def target(self, text: str) -> Path:
        """The place that a result may be written to.

        Args:
            text: as it was written; a relative path is one below the first folder.

        Raises:
            OptionError: it is not below the folders, or there are none.
        """
        text = _written(text, "folder to save in")
        if not self.folders:
            raise OptionError("this page writes no folders; download the adapter, or push it to the Hub")
        place = end_of(self.folders[0] / _path(text))
        if not self.holds(place) or place in self.folders:
            raise OptionError(f"saving in {text!r}: it must be a new folder below {self._listed()}")
        return place

    def holds(self, place: Path) -> bool:
        """Whether a path, followed to its end, lies in the folders."""
        return any(place.is_relative_to(folder) for folder in self.folders)

    def _check_links(self, place: Path, what: str, text: str) -> None:
        for entry in _entries(place):
            if entry.is_symlink() and not self.holds(end_of(entry)):
                raise OptionError(
                    f"{what} {text!r}: {entry.name} in it is a link that leads out of {self._listed()}; name that "
                    f"folder, too: samerge ui --folder FOLDER"
                )

    def _refusal(self, text: str, what: str, path: bool) -> str:
        if not self.folders:
            return f"{what} {text!r} is no repository of the Hub, user/name; this page reads nothing else"
        if path:
            return (
                f"{what} {text!r} does not lie below {self._listed()}, and nothing else is read on this machine; check "
                f"the path, or name its folder, too: samerge ui --folder FOLDER"
            )
        return f"{what} {text!r} is nothing below {self._listed()}, and no repository of the Hub, user/name"

    def _listed(self) -> str:
        return ", ".join(map(str, self.folders))


def named_folders(folders: Sequence[str], own_login: bool) -> Places:
    """Places below folders that exist.

    Raises:
        OptionError: one does not.
    """
    for folder in folders:
        if not Path(folder).expanduser().is_dir():
            raise OptionError(f"--folder {folder}: there is no such folder")
    return Places(tuple(dict.fromkeys(end_of(Path(folder).expanduser()) for folder in folders)), own_login)


def end_of(path: Path) -> Path:
    """Where a path leads, all links followed."""
    return Path(os.path.realpath(path))


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # Path's own raises where there is no such user


def _written(text: object, what: str) -> str:
    if not isinstance(text, str) or not text.strip() or "\0" in text or len(text) > _LONGEST:
        raise OptionError(f"no {what} was named")
    return text.strip()


def _entries(place: Path) -> Iterator[Path]:
    """What reading an adapter, a model or a pipeline may open: the files of its folder and of the folders in that."""
    if not place.is_dir():
        yield place.parent / CONFIG_NAME
        return
    for entry in place.iterdir():
        yield entry
        if entry.is_dir():
            yield from entry.iterdir()
