"""Adapters that old releases of PEFT and transformers wrote, merged here, and loaded here and there.

    python benchmarks/releases.py                       # all pairs, installed side by side where they are not yet
    python benchmarks/releases.py 0.12.0:4.44.2         # one pair

Every pair gets an environment of its own in a cache folder (`--cache`), made with pip. There each kind of model is
made, two adapters are trained (with random values), and what the model says with both, densely, is written down. Here
the adapters are merged with the base and without, and the result is loaded by the releases installed here and by those
that wrote the adapters. Counts go to benchmarks/results/releases.json, the table to docs/releases.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tables
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import samerge

HERE = Path(__file__).resolve().parent
THERE = HERE / "releases_there.py"
RESULTS = HERE / "results" / "releases.json"
DOC = tables.DOCS / "releases.md"
PAIRS = ("0.10.0:4.40.2", "0.12.0:4.44.2", "0.15.2:4.51.3", "0.18.0:4.57.3")
WAYS = ("with the base", "without a base", "loaded there")
#: Share of the adapters' effect that an output may be off, for another order of the same sums.
TOLERANCE = 1e-4


def environment(pair: str, cache: Path) -> Path:
    """The Python of a pair's environment, made if it is not there."""
    peft, _, of_transformers = pair.partition(":")
    folder = cache / pair.replace(":", "-")
    python = folder / "bin" / "python"
    if not (folder / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        packages = [f"torch=={version('torch')}", f"peft=={peft}", f"transformers=={of_transformers}", "safetensors"]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "made").touch()
    return python


def there(python: Path, *arguments: str | Path) -> str:
    """Run a command of `releases_there.py` in an environment; gives the last line of its error, if any."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, THERE, *arguments], capture_output=True, text=True, env=clean)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1][:200]


def said(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits.float()


def base_of(folder: Path) -> Any:
    [kind] = json.loads((folder / "base" / "config.json").read_text())["architectures"]
    return getattr(transformers, kind).from_pretrained(folder / "base")


def judged(found: Tensor, truth: dict[str, Tensor]) -> str:
    """ "right", or how far off in shares of the adapters' effect."""
    effect = float((truth["merged"] - truth["base"]).abs().max())
    off = float((found - truth["merged"]).abs().max()) / effect
    return "right" if off < TOLERANCE else f"off by {off:.2g} of the effect"


def row(kind: str, python: Path, folder: Path) -> dict[str, str]:
    """What became of one kind of one pair."""
    refused = there(python, "write", kind, folder)
    if refused:
        return {"written": refused}
    truth = load_file(folder / "said.safetensors")
    adapters = {name: str(folder / name) for name in "ab"}
    found = {"written": "right"}
    for way, base in (("with the base", str(folder / "base")), ("without a base", None)):
        try:
            merged = samerge.merge(base, adapters, method="linear", modules_to_save="average", progress=False)
            saved = merged.save(folder / way.replace(" ", "-"))
            found[way] = judged(said(PeftModel.from_pretrained(base_of(folder), saved)), truth)
        except Exception as error:  # whatever it is, it is the finding
            found[way] = f"refused: {error}"
    merged_there = folder / "without-a-base"
    if merged_there.is_dir():
        refused = there(python, "load", kind, folder, merged_there)
        found["loaded there"] = refused or judged(load_file(f"{merged_there}.said.safetensors")["merged"], truth)
    return found


def table(results: dict[str, Any]) -> str:
    """The table of docs/releases.md."""
    cells = [
        [pair.replace(":", ", "), kind, *(found.get(way, _lacking(found)) for way in WAYS)]
        for pair, kinds in results["pairs"].items()
        for kind, found in kinds.items()
    ]
    # of a refusal its first half, which says what; the second is the way out
    lines = [[cell.partition("; ")[0].replace("|", "/") for cell in line] for line in cells]
    return tables.rows(["PEFT, transformers", "kind", *WAYS], lines) + f"\n\n{tables.origin(results)}"


def _lacking(found: dict[str, str]) -> str:
    """What to show of a merge that there was nothing to load of."""
    return "-" if found["written"] == "right" else f"not written: {found['written']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=PAIRS, help="PEFT:TRANSFORMERS")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "samerge" / "releases")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kinds = subprocess.run(
        [sys.executable, "-c", "import releases_there; print('\\n'.join(releases_there.KINDS))"],
        capture_output=True, text=True, check=True, cwd=HERE,
    ).stdout.splitlines()  # fmt: skip
    kept = json.loads(RESULTS.read_text())["pairs"] if RESULTS.is_file() else {}
    for pair in chosen.pairs:
        python = environment(pair, chosen.cache)
        kept[pair] = {}
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                kept[pair][kind] = row(kind, python, Path(folder))
            print(pair, kind, kept[pair][kind], flush=True)
    here = {name: version(name) for name in ("samerge", "peft", "transformers", "torch")}
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    results = {"machine": machine, "versions": here, "pairs": dict(sorted(kept.items()))}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    tables.write(DOC, "releases.py", table(results))


if __name__ == "__main__":
    main()
