"""`scaling="lines:<alpha>:<beta>"`: deeper layers more strongly (Wang et al. 2024, LiNeS).

    lambda_l = alpha + beta l / (L - 1)

for layer l of L. A module's layer is the first number in its name; modules of one L share what stands before it
("encoder.layer.", "decoder.block."). Modules without a number come before all layers where they are embeddings, and
after them where they are not (heads, poolers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samerge.errors import OptionError
from samerge.options.module_names import first_layer


def is_lines(scaling: object) -> bool:
    """Whether a scaling asks for it."""
    return isinstance(scaling, str) and scaling.split(":")[0] == "lines"


def alpha_beta(scaling: str) -> tuple[float, float]:
    """The two numbers.

    Raises:
        OptionError: it is not "lines:<alpha>:<beta>" with finite numbers.

    Example:
        >>> alpha_beta("lines:0.2:0.8")
        (0.2, 0.8)
    """
    try:
        _, alpha, beta = (part if i == 0 else float(part) for i, part in enumerate(scaling.split(":")))
    except ValueError:
        alpha = beta = float("nan")
    if not (abs(float(alpha)) < float("inf") and abs(float(beta)) < float("inf")):
        raise OptionError(f"scaling={scaling!r} must be 'lines:<alpha>:<beta>' with two numbers, as in lines:0.2:0.8")
    return float(alpha), float(beta)


def layer_scalings(modules: Mapping[str, bool], names: Iterable[str], scaling: str) -> dict[str, float]:
    """lambda of every module.

    Args:
        modules: for each adapted module whether it is an embedding.
        names: of all modules or tensors of the base that tell how many layers there are; the adapted ones without.
        scaling: "lines:<alpha>:<beta>".

    Example:
        >>> layer_scalings({"h.0.q": False, "h.2.q": False, "head": False}, ["h.4.q"], "lines:0.2:0.8")
        {'h.0.q': 0.2, 'h.2.q': 0.6000000000000001, 'head': 1.0}
    """
    alpha, beta = alpha_beta(scaling)
    last: dict[str, int] = {}
    for name in (*modules, *names):
        if found := first_layer(name):
            stack, number = found
            last[stack] = max(last.get(stack, 0), number)
    result = {}
    for module, embedding in modules.items():
        depth = 0.0 if embedding else 1.0
        if found := first_layer(module):
            stack, number = found
            depth = number / max(1, last[stack])
        result[module] = alpha + beta * depth
    return result
