"""`samerge run`: a merge from a YAML file."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer

from samerge.cli.recipe import read_recipe
from samerge.cli.request import carry_out
from samerge.cli.shared_options import Manner
from samerge.cli.target import AdapterTarget


def run_recipe(
    *,
    recipe: Annotated[str, typer.Argument(metavar="FILE", help="The recipe, in YAML.")],
    target: AdapterTarget,
    manner: Manner,
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

    What is given here wins over the file. A configuration of mergekit is read, too, where it merges adapters of one
    base (`model: BASE+ADAPTER`); --out says where the adapter goes.
    """
    given = {item.name: getattr(target, item.name) for item in fields(target) if getattr(target, item.name)}
    carry_out(read_recipe(recipe, given), manner)
