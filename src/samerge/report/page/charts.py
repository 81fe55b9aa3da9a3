"""Pictures as SVG: bars, with a title and a description for those who do not see them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samerge.report.facts import escaped

_WIDTH, _HEIGHT = 360, 170
_LEFT, _BOTTOM, _TOP = 40, 34, 16
#: The most names below the bars.
_NAMES = 9


def bars(
    title: str,
    how: str,
    over: str,
    names: Sequence[str],
    values: Sequence[float],
    shown: Sequence[str],
    most: float,
    top: str,
) -> str:
    """Numbers as bars, with what they say in words above them.

    Args:
        title: of the picture.
        how: a sentence that says how to read it.
        over: what the bars are of, below them.
        names: of the bars.
        values: one for each.
        shown: the same as text, for who points at a bar and for who hears the picture.
        most: the number of a bar of full height.
        top: the same as text.
    """
    width = (_WIDTH - _LEFT) / max(1, len(values))
    whole = _HEIGHT - _BOTTOM - _TOP
    floor = _HEIGHT - _BOTTOM
    marks, every = [], -(-len(names) // _NAMES)
    for n, (name, value, told) in enumerate(zip(names, values, shown, strict=True)):
        height = whole * min(1.0, value / most) if most and math.isfinite(value) and math.isfinite(most) else 0.0
        x = _LEFT + n * width
        gap = min(2.0, width / 5)
        marks.append(
            f'<rect class="mark" x="{x + gap:.1f}" y="{floor - height:.1f}" width="{width - 2 * gap:.1f}" '
            f'height="{height:.1f}"><title>{escaped(over)} {escaped(name)}: {escaped(told)}</title></rect>'
        )
        if n % every == 0:
            marks.append(f'<text x="{x + width / 2:.1f}" y="{floor + 13}" text-anchor="middle">{escaped(name)}</text>')
    told = "; ".join(f"{name}: {value}" for name, value in zip(names, shown, strict=True))
    axis = f'<path class="axis" d="M{_LEFT} {_TOP}V{floor}H{_WIDTH}"/>'
    high = f'<text x="{_LEFT - 4}" y="{_TOP + 4}" text-anchor="end">{escaped(top)}</text>'
    zero = f'<text x="{_LEFT - 4}" y="{floor}" text-anchor="end">0</text>'
    below = f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escaped(over)}</text>'
    drawn = (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}"><title>{escaped(title)}</title>'
        f"<desc>{escaped(how)} {escaped(over)}: {escaped(told)}.</desc>{axis}{high}{zero}{''.join(marks)}{below}</svg>"
    )
    return f'<figure><figcaption>{escaped(title)}</figcaption><p class="how">{escaped(how)}</p>{drawn}</figure>'
