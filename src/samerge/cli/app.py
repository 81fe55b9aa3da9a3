"""The commands brought together."""

from __future__ import annotations

from typing import Annotated

import typer

from samerge.cli.bake import bake
from samerge.cli.check import check
from samerge.cli.compare import compare
from samerge.cli.compress import compress
from samerge.cli.convert import convert
from samerge.cli.exit_codes import guarded
from samerge.cli.extract import extract
from samerge.cli.full import full
from samerge.cli.init import init
from samerge.cli.inspect import inspect
from samerge.cli.merge import merge
from samerge.cli.methods import methods
from samerge.cli.own_options import SETTINGS
from samerge.cli.push import push
from samerge.cli.run import run_recipe
from samerge.cli.spread import spread
from samerge.cli.tune import tune
from samerge.cli.ui import ui
from samerge.cli.verify import verify

HELP = """Merge several PEFT LoRA adapters of one base model into one, from the weights alone: no data, no training.

Two adapters of a Llama, the second at four fifths of its strength:

    samerge merge --base meta-llama/Llama-3.1-8B --out merged/ \\
        --adapter math=ada/math-lora --adapter code=./code-lora:0.8

What was kept, where, from whom, and what was lost:

    samerge inspect merged/

The same merge as a file, which samerge init writes to begin with:

    samerge run recipe.yaml

Exit codes: 0 done, 1 unexpected failure, 2 bad input or usage, 130 interrupted, 143 ended by SIGTERM.
"""

app = typer.Typer(
    name="samerge",
    help=HELP,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        from samerge.version import __version__

        typer.echo(f"samerge {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The options that stand before a command."""


for _name, _command, _settings in (
    ("merge", merge, SETTINGS),
    ("tune", tune, SETTINGS),
    ("full", full, {}),
    ("bake", bake, {}),
    ("init", init, {}),
    ("run", run_recipe, {}),
    ("compare", compare, {}),
    ("inspect", inspect, {}),
    ("check", check, {}),
    ("verify", verify, {}),
    ("compress", compress, {}),
    ("convert", convert, {}),
    ("extract", extract, {}),
    ("push", push, {}),
    ("methods", methods, {}),
    ("ui", ui, {}),
):
    app.command(_name, context_settings=_settings)(guarded(spread(_command)))


def run() -> None:
    """The entry point `samerge`."""
    app(prog_name="samerge")
