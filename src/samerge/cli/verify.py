"""`samerge verify`: whether a merge and what it was made of are still what its record says."""

from __future__ import annotations

from typing import Annotated

import typer

from samerge.cli.console import show_json, stdout
from samerge.cli.exit_codes import BAD_INPUT
from samerge.cli.shared_options import Json


def verify(
    folder: Annotated[str, typer.Argument(metavar="PATH", help="What samerge merge or samerge full wrote.")],
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Merge again with the recorded options, too, and compare.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare the files of a merge, and the adapters it was made of, with the digests in its record.

    Nothing is changed, and the network is not asked: base and adapters of the Hub are looked for in its cache. What
    cannot be told is "unknown". The exit code is 0 if all that could be compared is as recorded, and 2 otherwise:

        samerge verify merged/ --reproduce
    """
    from samerge.merging.verifying import verify as verified

    found = verified(folder, reproduce)
    if as_json:
        show_json([{"what": one.what, "sound": one.sound, "told": one.told} for one in found])
    else:
        words = {True: "yes", False: "NO", None: "unknown"}
        for one in found:
            stdout().print(f"{words[one.sound]:<8} {one.what}: {one.told}", markup=False, soft_wrap=True)
    if any(one.sound is False for one in found):
        raise typer.Exit(BAD_INPUT)
