"""What becomes of the files of weights that lie beside adapters, which no merge can mean: the user's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samerge.adapters import Adapter
from samerge.adapters.companions import lies_there
from samerge.errors import AdapterError, OptionError


def chosen_companions(adapters: Sequence[Adapter], choice: str | None) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files to put beside the merged adapter, and what to tell of them.

    Args:
        adapters: those of a weight other than 0.
        choice: the option `companions`: "drop", "take:<adapter>", or None.

    Raises:
        AdapterError: there are such files and no choice, or one is a link that leads elsewhere.
        OptionError: the choice names no adapter that has any.
    """
    found = {adapter.name: adapter.companions for adapter in adapters if adapter.companions}
    listed = "; ".join(f"{name}: {', '.join(path.name for path in paths)}" for name, paths in found.items())
    if choice is not None and choice.startswith("take:"):
        taken = choice.removeprefix("take:")
        if taken not in found:
            raise OptionError(
                f"companions={choice!r} names no adapter of this merge with files of weights beside it "
                f"({listed or 'none has any'})"
            )
        absent = [path.name for path in found[taken] if not path.exists() and not path.is_symlink()]
        if absent:
            raise AdapterError(
                f"taking the files of weights beside adapter {taken!r}: {', '.join(absent)} was not downloaded from "
                f"the Hub; fetch the whole repository with `hf download`, and give its folder"
            )
        strange = [path.name for path in found[taken] if not lies_there(path)]
        if strange:
            raise AdapterError(
                f"taking the files of weights beside adapter {taken!r}: {', '.join(strange)} is a link that leads out "
                f"of its folder; put the file itself there, or leave it out with companions='drop'"
            )
        left = {name: paths for name, paths in found.items() if name != taken}
        more = "".join(f"; not those of {name} ({', '.join(path.name for path in own)})" for name, own in left.items())
        names = ", ".join(path.name for path in found[taken])
        return found[taken], (
            f"the files of weights beside the adapter {taken} were copied as they are: {names}{more}",
        )
    if not found:
        return (), ()
    if choice is None:
        raise AdapterError(
            f"merging adapters that have files of weights beside them ({listed}), which PEFT does not read and a sum "
            f"of updates does not merge: what was trained there would be lost. Choose companions='drop' (leave them "
            f"out) or 'take:<adapter>' (copy one adapter's)"
        )
    return (), (f"left out, as companions='drop' asks, the files of weights beside the adapters: {listed}",)
