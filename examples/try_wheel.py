"""Install a built wheel into an environment of its own, and merge two adapters there with its command.

    python examples/try_wheel.py dist/samerge-0.1.0-py3-none-any.whl

The environment sees the dependencies of this interpreter's, but not this folder: what the wheel lacks is missing there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ADAPTERS = Path(__file__).resolve().parent / "adapters" / "minilm"


def main(wheel: str) -> None:
    """Install it, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        venv.create(place / "env", with_pip=False)
        python = place / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

        def run(*words: object, **more: str) -> str:
            done = subprocess.run([str(word) for word in words], cwd=place, env=clean | more, stdout=subprocess.PIPE)
            if done.returncode:
                raise SystemExit(f"{' '.join(str(word) for word in words)} ended with {done.returncode}")
            return done.stdout.decode()

        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, Path(wheel).resolve())
        seen = {"PYTHONPATH": os.pathsep.join([site, sysconfig.get_path("purelib")])}
        where = run(python, "-c", "import samerge; print(samerge.__file__)", **seen).strip()
        if not where.startswith(site):
            raise SystemExit(f"samerge is {where}, not the wheel's")
        given = ["--adapter", ADAPTERS / "reuters", "--adapter", ADAPTERS / "movies"]
        run(python, "-m", "samerge", "merge", "--method", "even", *given, "--out", "merged", "--quiet", **seen)
        made = json.loads((place / "merged" / "samerge.json").read_text(encoding="utf-8"))
        print(f"{Path(wheel).name}: installed, {len(made['adapters'])} adapters merged")


if __name__ == "__main__":
    main(*sys.argv[1:])
