"""`samerge ui`: a page to merge on, in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from samerge.cli.console import stderr
from samerge.cli.shared_options import Token


def ui(
    *,
    folder: Annotated[
        list[str] | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Files below it may be read, and results saved there; several times for several folders. Nothing else "
            "of this machine is read. Default: the current folder.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="The address to listen at; only this machine reaches it.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, metavar="N", help="Default: the first free one from 7860.", show_default=False
        ),
    ] = None,
    token: Token = None,
) -> None:
    """Open a page to merge on: choose adapters, see what they contain and how they conflict, move weights, merge.

    It needs gradio, which pip install 'samerge[ui]' brings. Stop it with Control-C.

        samerge ui --folder loras/ --folder models/
    """
    from samerge.ui.places import named_folders
    from samerge.ui.server import LOOPBACK, served, until_interrupted

    mine = host in LOOPBACK
    places = named_folders(folder or ["."], own_login=mine)
    with served(places, host, port) as address:
        stderr().print(f"samerge is at {address}; Control-C stops it", markup=False)
        if not mine:
            stderr().print(
                f"warning: whoever reaches {host} can read adapters and models below "
                f"{', '.join(map(str, places.folders))}, save there, and use this machine to merge; your login of the "
                f"Hub is not used",
                style="yellow",
                markup=False,
            )
        try:
            until_interrupted()
        except KeyboardInterrupt as stop:
            if type(stop) is not KeyboardInterrupt:  # a signal to end has its own exit code
                raise
