"""What the page shows, as HTML. Names and messages come from anywhere: every one of them is escaped."""

from __future__ import annotations

from samerge.adapters.servers import VERSIONS
from samerge.merging import agreement_page
from samerge.merging.checking import AdapterReport
from samerge.report.facts import Column, Facts, breaking, escaped, number, percent
from samerge.report.page.frame import Section, fragment_of
from samerge.report.record import Record
from samerge.report.tables import adapters_table
from samerge.ui.chosen import summary_of
from samerge.ui.work import Looked

#: Layers shown in which two adapters are most in conflict.
_WORST = 5


def looked_over(looked: Looked) -> str:
    """What each adapter contains, and how they agree."""
    contents = f'<div class="charts">{"".join(_contents(report) for report in looked.reports)}</div>'
    told = fragment_of("", [Section("contents", "What they contain", contents)])
    if looked.conflicts is not None:
        return told + agreement_page.fragment(looked.conflicts, _WORST)
    return told + (notice(f"They cannot be compared: {looked.apart}", wrong=True) if looked.apart else "")


def _contents(report: AdapterReport) -> str:
    problems = "".join(f"<li>{escaped(one)}</li>" for one in report.problems)
    wrong = f'<div class="warnings"><b>Cannot be merged as it is</b><ul>{problems}</ul></div>' if problems else ""
    lines = "".join(f"<li>{escaped(line)}</li>" for line in report.contents())
    served = [_server(server, reasons) for server, reasons in (report.serving or {}).items()]
    more = [*(f"Note: {note}" for note in report.notes), *served]
    notes = "".join(f"<li>{escaped(one)}</li>" for one in more)
    folded = f"<details><summary>Servers and notes</summary><ul>{notes}</ul></details>" if notes else ""
    return f"<div><h3>{breaking(report.name)}</h3><ul>{lines}</ul>{wrong}{folded}</div>"


def _server(server: str, reasons: tuple[str, ...]) -> str:
    said = f"cannot serve it: {'; '.join(reasons)}" if reasons else "serves it"
    return f"{server} {VERSIONS[server]} {said}"


def figures(record: Record, before: Record | None) -> str:
    """What became of each adapter, and what is other than in the merge before, where that had the same adapters."""
    parts = [adapters_table(record).html()]
    if before is not None and list(before.adapters) == list(record.adapters):
        parts.append(changes(before, record).html())
    warnings = "".join(f"<li>{escaped(warning)}</li>" for warning in record.warnings)
    if warnings:
        parts.append(f'<div class="warnings"><b>Warnings</b><ul>{warnings}</ul></div>')
    return fragment_of("", [Section("figures", "What became of each adapter", "".join(parts))])


def changes(before: Record, after: Record) -> Facts:
    """The figures of two merges of the same adapters beside each other."""
    columns = (
        Column("adapter", name=True),
        Column("weight"),
        Column("energy kept"),
        Column("cosine"),
        Column("inter\u00adference"),
    )
    rows = [
        [
            name,
            _moved(f"{old.weight:g}", f"{new.weight:g}"),
            _moved(percent(old.energy_kept), percent(new.energy_kept)),
            _moved(number(old.cosine), number(new.cosine)),
            _moved(number(old.interference), number(new.interference)),
        ]
        for (name, old), new in zip(before.adapters.items(), after.adapters.values(), strict=True)
    ]
    was, now = f"{before.method}, rank {before.output.rank}", f"{after.method}, rank {after.output.rank}"
    lost = _moved(percent(before.whole.lost), percent(after.whole.lost))
    note = f"The whole: {_moved(was, now)}; norm {_moved(f'{before.whole.norm:.3g}', f'{after.whole.norm:.3g}')}; "
    note += f"truncation lost {lost} of its energy."
    return Facts("Beside the merge before", columns, rows, note)


def _moved(old: str, new: str) -> str:
    return new if old == new else f"{old} \u2192 {new}"


def about(method: str) -> str:
    """What a method does."""
    return fragment_of(f"<p>{escaped(summary_of(method))}</p>", [])


def notice(text: str, wrong: bool = False) -> str:
    """A line about what was done, or what was not."""
    kind = ' class="warnings"' if wrong else ""
    return fragment_of(f'<div{kind} role="{"alert" if wrong else "status"}"><p>{escaped(text)}</p></div>', [])
