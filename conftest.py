"""Which modules have no doctests to collect: those that cannot be imported here."""

from importlib.util import find_spec

_NEEDED = {
    "triton": [f"src/samerge/saliency/kernels/triton_{name}.py" for name in ("kernel", "tiles")],
    "gradio": [f"src/samerge/ui/{name}.py" for name in ("fields", "page")],
}
collect_ignore = [file for package, files in _NEEDED.items() if not find_spec(package) for file in files]
