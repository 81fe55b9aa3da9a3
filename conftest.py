"""Which modules have no doctests to collect: those that cannot be imported here."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("triton") else [f"src/samerge/saliency/kernels/triton_{name}.py" for name in ("kernel", "tiles")]
)
