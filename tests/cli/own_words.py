"""Which options a command speaks of that it has not got."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from typer.main import get_command

from samerge.cli import app
from samerge.methods.registry import available_methods, find
from samerge.options.option import table

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
#: A command of samerge, or of others, whose words stand behind it.
_CALL = re.compile(r"\b(samerge|hf|vllm|llama-cli|mlx_lm\.\w+|python|pip) ?(\w*)")
_OF_MERGE = " of samerge merge"


@cache
def options_of(command: str) -> frozenset[str]:
    """All that the command takes; `merge` and `tune` take those of methods, too."""
    found = get_command(app).commands[command]
    own = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    if found.context_settings.get("ignore_unknown_options"):
        rows = {row.name for method in available_methods() for row in table(find(method).options)}
        own |= {f"--{name.replace('_', '-')}" for name in rows} | {"--svd-rank"}
    return frozenset(own)


def foreign_options(words: Sequence[str], output: str) -> list[str]:
    """Options in what a command printed that neither it has, nor the command that is named before them, nor the user.

    `check` says what a merge would say, in the words of a merge.
    """
    text = " ".join(output.split())
    found = []
    for option in _OPTION.finditer(text):
        clause = re.split(r"[;`\"]", text[: option.start()])[-1]
        calls = _CALL.findall(clause)
        program, command = calls[-1] if calls else ("samerge", words[0])
        known = program != "samerge" or option[0] in words
        commands = [name for name in (command, words[0], *(["merge"] * (words[0] == "check"))) if name in _commands()]
        if text[option.start() :].split(";")[0].partition(_OF_MERGE)[1]:
            commands.append("merge")
        if not known and not any(option[0] in options_of(name) for name in commands):
            found.append(f"{option[0]}: ...{text[max(0, option.start() - 90) : option.end() + 40]}...")
    return found


@cache
def _commands() -> frozenset[str]:
    return frozenset(get_command(app).commands)
