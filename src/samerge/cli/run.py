"""`samerge run`: a merge from a YAML file."""

from __future__ import annotations

from typing import Annotated

import typer

from samerge.cli.recipe import read_recipe
from samerge.cli.request import carry_out
from samerge.cli.shared_options import Json, Overwrite, Private, PushToHub, Quiet


def run_recipe(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The recipe, in YAML.")],
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help="Instead of the recipe's.")] = None,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge as a YAML file says. Its keys are the words of `samerge merge`; paths are taken from the current folder.

    ```yaml
    base: meta-llama/Llama-3.1-8B
    adapters:
      - name: math
        source: ada/math-lora
      - name: code
        source: ./code-lora
        weight: 0.8
    rank: 16
    out: merged/
    ```
    """
    changes = {
        "out": out,
        "overwrite": overwrite or None,
        "push_to_hub": push_to_hub,
        "private": private or None,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    carry_out(read_recipe(file, given), as_json=as_json, quiet=quiet)
