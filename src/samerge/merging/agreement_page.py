"""How several adapters agree with each other, to look at: tables, and a page of HTML."""

from __future__ import annotations

from samerge.merging.between_adapters import Conflicts
from samerge.merging.reading_conflicts import reading
from samerge.report.facts import Column, Facts, escaped, number, percent
from samerge.report.page.frame import Section, document, fragment_of
from samerge.report.page.pieces import heat_map

#: Pairs in the table, those that work against each other most.
_MOST_PAIRS = 12


def page(found: Conflicts, worst: int) -> str:
    """One page of HTML, without a script and without the network.

    Args:
        found: the adapters, each with each.
        worst: how many layers are shown, those most in conflict.
    """
    title = f"{len(found.names)} adapters, each with each"
    return document(title, f"<h1>{escaped(title)}</h1>{_head(found)}", _sections(found, worst))


def fragment(found: Conflicts, worst: int) -> str:
    """The same for a page that has more than this: without what a document of its own has, the tables folded."""
    picture, *tables = _sections(found, worst)
    more = "".join(f"<h3>{escaped(one.title)}</h3>{one.content}" for one in tables)
    folded = f"<details><summary>Two by two, and layer by layer</summary>{more}</details>"
    return fragment_of(_head(found), [Section(picture.key, picture.title, f"{picture.content}{folded}")])


def _head(found: Conflicts) -> str:
    told = "Before any merge, from the weights alone; nothing here was measured on a task."
    return f"<p>{escaped(reading(found))}</p><p>{told}</p>"


def _sections(found: Conflicts, worst: int) -> list[Section]:
    sections = [
        Section("cosines", "Who goes whose way", heat_map(found.heat(), "adapter")),
        Section("pairs", "Two by two", f"{norms_table(found).html()}{pairs_table(found).html()}"),
    ]
    if worst and found.layers:
        sections.append(Section("layers", "Layers", worst_table(found, worst).html()))
    return sections


def norms_table(found: Conflicts) -> Facts:
    """The size of every adapter's update."""
    rows = [[name, f"{norm:.3g}"] for name, norm in zip(found.names, found.norms, strict=True)]
    return Facts("Sizes", [Column("adapter", name=True), Column("norm", "of its whole update (Frobenius).")], rows)


def cosines_table(found: Conflicts) -> Facts:
    """Each with each."""
    columns = [Column("adapter", name=True), Column("norm"), *(Column(name) for name in found.names)]
    rows = [
        [name, f"{norm:.3g}", *(number(value) for value in row)]
        for name, norm, row in zip(found.names, found.norms, found.cosine, strict=True)
    ]
    note = "1 is the same direction, 0 nothing in common, -1 the opposite."
    return Facts("Cosine between the adapters' updates", columns, rows, note)


def pairs_table(found: Conflicts) -> Facts:
    """One row for each two adapters, those that work against each other most first."""
    looked, all_ = found.sampled
    left = len(found.pairs()) - _MOST_PAIRS
    columns = (
        Column("adapters", name=True),
        Column("cosine"),
        Column("sign conflicts", f"elements with opposite signs, on {looked:,} of {all_:,}; by chance 50%."),
        Column("inputs in common", f"overlap of the inputs that both react to; by chance {percent(found.chance)}."),
        Column("outputs in common", "the same of what they write to."),
        Column("norms", "the first adapter's norm to the second's."),
    )
    values = {pair: found.cosine[pair[0]][pair[1]] for pair in found.pairs()}
    order = sorted(values, key=lambda pair: (values[pair] is None, values[pair] or 0.0, pair))
    rows = []
    for i, j in order[:_MOST_PAIRS]:
        ratio = found.norms[i] / found.norms[j] if found.norms[j] else None
        rows.append(
            [
                f"{found.names[i]}, {found.names[j]}",
                number(found.cosine[i][j]),
                percent(found.sign_conflict[i][j]),
                percent(found.rows[i][j]),
                percent(found.columns[i][j]),
                "-" if ratio is None else f"{ratio:.2g} : 1",
            ]
        )
    return Facts("Each with each", columns, rows, f"{left} more pairs with --json." if left > 0 else "")


def worst_table(found: Conflicts, count: int) -> Facts:
    """The layers in which two adapters work against each other most."""
    columns = (Column("layer", name=True), Column("adapters", name=True), Column("cosine"))
    rows = [[row["module"], ", ".join(row["adapters"]), number(row["cosine"])] for row in found.worst(count)]
    return Facts("Layers most in conflict", columns, rows)
