"""A report as tables of words: what render and markdown have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vatt.sizes import format_size
from vattctl.bench.facts import facts
from vattctl.bench.leases import Leases
from vattctl.bench.published import SOURCES, Source
from vattctl.bench.report import Report
from vattctl.bench.steps import Steps
from vattctl.bench.stopwatch import Line
from vattctl.bench.summary import Summary

# Driver calls by phase, under the names that people compare them by; what else a phase calls is in the JSON. Where a
# driver has one call for a run of pages it is made once, but for those "each", which are made page by page.
CALLS = {
    ("reserve", "cuMemAddressReserve"): "reserve",
    ("reserve", "mmap"): "reserve",
    ("create", "cuMemCreate"): "create",
    ("create", "fallocate"): "create",
    ("export", "cuMemExportToShareableHandle"): "export",
    ("export", "dup"): "export",
    ("import", "cuMemImportFromShareableHandle"): "import",
    ("import", "dup"): "import",
    ("map", "cuMemMap"): "map",
    ("map", "mmap"): "map",
    ("map", "madvise"): "advise",
    ("map", "cuMemSetAccess"): "set-access",
    ("map each", "cuMemSetAccess"): "set-access each",
    ("map each", "mmap"): "map each",
    ("unmap", "cuMemUnmap"): "unmap",
    ("unmap", "mmap"): "unmap",
    ("unmap each", "cuMemUnmap"): "unmap each",
    ("unmap each", "mmap"): "unmap each",
    ("release", "cuMemRelease"): "release",
    ("destroy", "cuMemRelease"): "destroy",
    ("destroy", "fallocate"): "destroy",
    ("free", "cuMemAddressFree"): "free",
    ("free", "munmap"): "free",
}
PHASES = (
    "reserve",
    "create",
    "export",
    "import",
    "map",
    "map each",
    "unmap",
    "unmap each",
    "release",
    "destroy",
    "free",
)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns but the first `words` hold figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    words: int = 1
    is_detail: bool = False  # for a report; too much for a terminal
    is_extract: bool = False  # for a terminal; a report has all of it


def tables(report: Report) -> list[Table]:
    return [table for table in _all(report) if table.rows]


def _all(report: Report) -> Iterator[Table]:
    yield Table("Where", ("", ""), facts(report), words=2)
    if report.calls:
        yield _pages_table(report)
        yield _phases_table(report)
        yield _distribution_table(report)
        yield _detail_table(report)
    if report.leases:
        yield _leases_table(report.leases, report.environment.backend)
    if report.steps:
        yield _steps_table(report.steps)
    yield _ratios_table(report)
    if report.calls:
        yield _published_table(report)


def named_calls(report: Report) -> list[tuple[str, Line]]:
    """Driver calls by their names, in the order of a page's life, then of page counts."""
    found = [(CALLS[key], line) for line in report.calls if line.call and (key := (line.phase, line.call)) in CALLS]
    order = list(dict.fromkeys(CALLS.values()))
    return sorted(found, key=lambda item: (order.index(item[0]), item[1].page_count))


def microseconds(value: float) -> str:
    """Three figures, or whole microseconds, or three places."""
    if value < 0.0995:
        return f"{value:.3f}"
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "-"


def _pages_table(report: Report) -> Table:
    counts = report.plan.page_counts
    rows: dict[str, list[str]] = {}
    for name, line in named_calls(report):
        row = rows.setdefault(name, [name, line.call or "", *("-" for _ in counts)])
        row[2 + list(counts).index(line.page_count)] = microseconds(line.page_us)
    notes = [
        "Medians of rounds. A call for a run of pages is made once, and its time shared out; "
        '"each": made page by page. "release" drops an import, "destroy" the page itself.'
    ]
    if report.environment.backend == "host":
        notes.append("Host mappings are readable and writable from the start: there is no set-access.")
    return Table(
        "Driver calls, us a page, by pages at a time", ("", "call", *map(str, counts)), list(rows.values()), notes, 2
    )


def _phases_table(report: Report) -> Table:
    counts = report.plan.page_counts
    rows = []
    for phase in PHASES:
        lines = {line.page_count: line for line in report.calls if line.phase == phase and line.call is None}
        if lines:
            rows.append([phase, *(microseconds(lines[c].page_us) if c in lines else "-" for c in counts)])
    note = "The same by the library's drivers: all their calls for it, and their own bookkeeping."
    return Table("As the library does it, us a page", ("", *map(str, counts)), rows, [note])


def _summary_cells(summary: Summary) -> list[str]:
    times = (summary.p10_us, summary.median_us, summary.p90_us, summary.p99_us, summary.most_us)
    return [f"{summary.count:,}", *map(microseconds, times)]


def _distribution_table(report: Report) -> Table:
    most = max(report.plan.page_counts)
    rows = [[name, *_summary_cells(line.call_us)] for name, line in named_calls(report) if line.page_count == most]
    columns = ("", "calls", "p10", "median", "p90", "p99", "most")
    return Table(f"Single calls in rounds of {most} pages, us", columns, rows, is_extract=True)


def _detail_table(report: Report) -> Table:
    rows = [
        [name, line.call or "", str(line.page_count), f"{line.round_us.count:,}", *_summary_cells(line.call_us)]
        for name, line in named_calls(report)
    ]
    columns = ("", "call", "pages", "rounds", "calls", "p10", "median", "p90", "p99", "most")
    return Table("Single calls, us", columns, rows, words=2, is_detail=True)


def _leases_table(leases: Leases, backend: str) -> Table:
    rows = [["message", "-", *_summary_cells(leases.message_us), "-"]]
    for line in sorted(leases.lines, key=lambda line: (line.phase, line.page_count)):
        rows.append([line.phase, str(line.page_count), *_summary_cells(line.call_us), microseconds(line.page_us)])
    notes = ['"lease": asked for, granted, handed over and imported; "return": let go of and given back.']
    if backend == "host":
        notes.append("The slab's descriptor travels with every lease, since nothing of it is held in between.")
    return Table(
        "Round trips with vattd, us",
        ("", "pages", "times", "p10", "median", "p90", "p99", "most", "a page"),
        rows,
        notes,
    )


def _steps_table(steps: Steps) -> Table:
    rows = [[line.way.value, f"{line.mapped_pages_a_step:.2f}", *_summary_cells(line.step_us)] for line in steps.lines]
    notes = [
        f"{steps.slots} slots, a token each a step, {steps.tokens_a_page} tokens a page of all {steps.layers} layers; "
        f"a step every {steps.step_s * 1000:g} ms, and no model between them."
    ]
    return Table("KVCache.step, us", ("", "pages a step", "steps", "p10", "median", "p90", "p99", "most"), rows, notes)


def _ratios_table(report: Report) -> Table:
    most = max(report.plan.page_counts)
    phases = {(line.phase, line.page_count): line.page_us for line in report.calls if line.call is None}
    rows: list[list[str]] = []

    def compare(name: str, base: str, value: float | None, base_value: float | None) -> None:
        if value is not None and base_value is not None:
            rows.append([name, base, _ratio(value, base_value)])

    for phase in ("map", "unmap"):
        if most > 1:
            compare(
                f"{phase} page by page",
                f"all {most} at once",
                phases.get((f"{phase} each", most)),
                phases.get((phase, most)),
            )
    if phases:
        made = phases["create", most] + phases["destroy", most]
        compare("create and destroy a page", "map and unmap it", made, phases["map", most] + phases["unmap", most])
    if report.leases:
        one = [line for line in report.leases.lines if line.page_count == 1 and line.phase == "lease"]
        for line in one:
            compare("lease a page", "an empty message", line.call_us.median_us, report.leases.message_us.median_us)
    if report.steps:
        idle, ahead, in_step = (line.step_us for line in report.steps.lines)
        compare("step, mapped in it: median", "mapped ahead", in_step.median_us, ahead.median_us)
        compare("step, mapped in it: p99", "mapped ahead", in_step.p99_us, ahead.p99_us)
        compare("step, mapped ahead: median", "nothing to map", ahead.median_us, idle.median_us)
    return Table("Ratios, all of this run", ("takes so many times as long:", "as", "ratio"), rows, words=2)


def _published_table(report: Report) -> Table:
    compares = report.environment.backend == "cuda" and not report.is_simulated
    # Of a page each, as theirs; the latest are of the most pages. Addresses are for many pages, as theirs.
    ours = {
        name: line.call_us.median_us
        for name, line in named_calls(report)
        if line.calls_a_round >= line.page_count or name in ("reserve", "free")
    }
    rows = []
    for name in dict.fromkeys(CALLS.values()):
        theirs = [source.call_us.get(name) for source in SOURCES]
        if any(theirs):
            mine = ours.get(name)
            cells = [microseconds(mine) if mine is not None else "-"]
            for value in theirs:
                cells.append(microseconds(value) if value is not None else "-")
                cells.append(_ratio(mine, value) if compares and mine is not None and value is not None else "-")
            rows.append([name, *cells])
    heads = [head for source in SOURCES for head in (source.name, "ratio")]
    notes = [_source_words(source) for source in SOURCES]
    if report.environment.backend == "host":
        notes.append("These are calls for a GPU's pages, and ours the kernel's for host memory: no ratios.")
    return Table("Beside published figures, us a call; theirs are of other machines", ("", "here", *heads), rows, notes)


def _source_words(source: Source) -> str:
    page = format_size(source.page_size_bytes)
    return f"{source.name}: {source.reference}; pages of {page}, {source.hardware}; {source.statistic}."
