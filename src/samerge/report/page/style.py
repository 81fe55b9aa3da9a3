"""How the page looks: one sheet of CSS, in light and dark, for every width; everything in it is below `.samerge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Steps of colour of a heat map, from the faintest: background and letters, of what is above the middle and below it.
_LIGHT = {
    "u": (
        ("#e6f0fb", "#1b1f24"),
        ("#c9e0f7", "#1b1f24"),
        ("#95c3ee", "#10151a"),
        ("#2b6cab", "#fff"),
        ("#134a82", "#fff"),
    ),
    "d": (
        ("#fdebe5", "#1b1f24"),
        ("#f9d0c4", "#1b1f24"),
        ("#f0a48c", "#1a100d"),
        ("#b8402a", "#fff"),
        ("#7c1d10", "#fff"),
    ),
}
_DARK = {
    "u": (
        ("#17293b", "#e6edf3"),
        ("#1b3c5e", "#e6edf3"),
        ("#215788", "#fff"),
        ("#6fb0e8", "#06121d"),
        ("#b9dcfa", "#06121d"),
    ),
    "d": (
        ("#38211c", "#e6edf3"),
        ("#5a2b20", "#e6edf3"),
        ("#8a3826", "#fff"),
        ("#f29a83", "#1d0a05"),
        ("#fcd3c8", "#1d0a05"),
    ),
}
_COLOURS = {
    "light": "--back:#fff;--text:#1b1f24;--faint:#57606a;--line:#d0d7de;--panel:#f6f8fa;--link:#0757b5;"
    "--bar:#2b6cab;--warn:#8a4600;--warned:#fff6e5",
    "dark": "--back:#0f1318;--text:#e6edf3;--faint:#a3adb8;--line:#3b444e;--panel:#181e25;--link:#7cb7ff;"
    "--bar:#6fb0e8;--warn:#ffc673;--warned:#2c2211",
}
_SHEET = """
.samerge{background:var(--back);color:var(--text);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,
sans-serif;box-sizing:border-box;max-width:76rem;margin:0 auto;padding:.5rem 1rem 2rem;overflow-wrap:break-word}
.samerge *{box-sizing:border-box}
.samerge h1{font-size:1.6rem;line-height:1.25;margin:.8rem 0 .4rem;overflow-wrap:anywhere}
.samerge h2{font-size:1.2rem;margin:2.2rem 0 .5rem;padding-top:.6rem;border-top:1px solid var(--line)}
.samerge h3{font-size:1rem;margin:1.4rem 0 .3rem}
.samerge p{margin:.4rem 0;max-width:46rem}
.samerge a{color:var(--link)}
.samerge :focus-visible{outline:3px solid var(--link);outline-offset:2px}
.samerge .skip{position:absolute;left:-100rem}
.samerge .skip:focus{position:static}
.samerge nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;margin:.6rem 0;padding:0}
.samerge nav a{display:inline-block;padding:.15rem 0}
.samerge dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.5rem;margin:.8rem 0}
.samerge dl div{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.45rem .7rem}
.samerge dt{color:var(--faint);font-size:.85rem}
.samerge dd{margin:0;overflow-wrap:anywhere}
.samerge .scroll{overflow-x:auto;max-width:100%;margin:.5rem 0;position:relative}
.samerge table{border-collapse:collapse;color:inherit;background:none;margin:0;font-size:.9rem;
font-variant-numeric:tabular-nums}
.samerge caption{text-align:left;font-weight:600;padding:.2rem 0;color:var(--text)}
.samerge th,.samerge td{padding:.25rem .55rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
background:none;color:inherit}
.samerge th{font-weight:600}
.samerge thead th{vertical-align:bottom;color:var(--faint)}
.samerge .name{text-align:left;max-width:24rem}
.samerge tbody th{position:sticky;left:0;background:var(--back);font-weight:500;text-align:left}
.samerge tbody th>span{display:block;width:max-content;max-width:min(28rem,38vw);min-width:4rem;overflow-wrap:anywhere}
.samerge .bar{display:block;height:4px;margin-top:2px;background:var(--line);min-width:4rem}
.samerge .bar i{display:block;height:100%;background:var(--bar)}
.samerge .legend,.samerge .how{color:var(--faint);font-size:.88rem}
.samerge .legend{margin:.3rem 0 .8rem;padding-left:1.1rem;max-width:46rem}
.samerge .heat td,.samerge .heat thead th{padding:.2rem .3rem;text-align:center;font-size:.8rem;min-width:1.9rem;
border:1px solid var(--back)}
.samerge .heat thead .long{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;max-height:14rem}
.samerge .heat .z{color:var(--faint)}
.samerge .heard{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.samerge .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:0 2rem}
.samerge figure{margin:.6rem 0;max-width:32rem}
.samerge figcaption{font-weight:600}
.samerge svg{display:block;width:100%;height:auto;max-width:32rem}
.samerge svg text{fill:var(--faint);font:11px system-ui,sans-serif}
.samerge svg .mark{fill:var(--bar)}
.samerge svg .axis{stroke:var(--line);fill:none}
.samerge .warnings{background:var(--warned);border-left:4px solid var(--warn);padding:.5rem 1rem;border-radius:4px}
.samerge .warnings b{color:var(--warn)}
.samerge .warnings ul{margin:.2rem 0;padding-left:1.1rem}
.samerge .warnings li{overflow-wrap:anywhere}
.samerge details{margin:.6rem 0}
.samerge summary{cursor:pointer;padding:.3rem 0;color:var(--link)}
.samerge pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;overflow-x:auto;
margin:.4rem 0;color:inherit}
.samerge code,.samerge pre{font:.85rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.samerge p code{overflow-wrap:anywhere}
.samerge footer{margin-top:2rem;color:var(--faint);font-size:.88rem}
"""
#: Paper is white whatever the screen is, and colours that mean something are printed.
_PRINTED = """
@media print{.samerge nav,.samerge .skip{display:none}.samerge .scroll{overflow:visible}
.samerge *{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@media (forced-colors:active){.samerge svg .mark,.samerge .bar i{fill:CanvasText;background:CanvasText;
forced-color-adjust:none}}
"""

#: The document's own ground, around what is `.samerge`.
GROUND = "body{margin:0}html{background:#fff}@media (prefers-color-scheme:dark){html{background:#0f1318}}"


def sheet() -> str:
    """The sheet."""
    dark = f".samerge{{{_COLOURS['dark']}}}{_steps(_DARK)}"
    scheme = "color-scheme:light dark"
    return (
        f".samerge{{{scheme};{_COLOURS['light']}}}{_steps(_LIGHT)}"
        f"@media (prefers-color-scheme:dark){{{dark}}}{_SHEET}{_PRINTED}"
    )


def _steps(colours: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    return "".join(
        f".samerge .{side}{step}{{background:{back};color:{text}}}"
        for side, steps in colours.items()
        for step, (back, text) in enumerate(steps, 1)
    )
