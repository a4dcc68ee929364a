"""A picture of a bench: calls by pages at a time beside published points, leases, steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vatt.sizes import format_size
from vattctl.bench.leases import Leases
from vattctl.bench.published import SOURCES, Source
from vattctl.bench.report import Report
from vattctl.bench.steps import Steps
from vattctl.bench.stopwatch import Line
from vattctl.bench.tables import named_calls

# A colour and a marker for each call that is drawn; what others published of it has the colour.
STYLES: dict[str, dict[str, Any]] = {
    "create": {"color": "#d55e00", "marker": "o"},
    "export": {"color": "#999999", "marker": "v"},
    "import": {"color": "#56b4e9", "marker": "^"},
    "map": {"color": "#0072b2", "marker": "s"},
    "map each": {"color": "#0072b2", "marker": "s", "linestyle": (0, (1, 1.2)), "fillstyle": "none"},
    "set-access": {"color": "#cc79a7", "marker": "D"},
    "set-access each": {"color": "#cc79a7", "marker": "D", "linestyle": (0, (1, 1.2)), "fillstyle": "none"},
    "unmap": {"color": "#009e73", "marker": "P"},
    "unmap each": {"color": "#009e73", "marker": "P", "linestyle": (0, (1, 1.2)), "fillstyle": "none"},
    "release": {"color": "#e69f00", "marker": "<"},
    "destroy": {"color": "#000000", "marker": "X"},
}
# Published points stand left of one page, each source's in a column, with names on the side that is given.
PUBLISHED: Sequence[tuple[float, str, str]] = ((0.20, "*", "right"), (0.28, "h", "left"))
PUBLISHED_EDGES = (0.06, 0.76)
# Of the height of the axes: names closer to each other could not be read.
NAME_GAP = 0.03
LEASE_STYLES: dict[str, dict[str, Any]] = {
    "lease": {"color": "#0072b2", "marker": "o"},
    "return": {"color": "#d55e00", "marker": "s"},
}


def plot(path: Path, report: Report) -> None:
    """Write a PNG of what was measured; what was not is left out."""
    panels: list[tuple[float, Callable[[Axes], None]]] = []
    if report.calls:
        panels.append((5.4, lambda axes: _calls(axes, report)))
    if report.leases is not None:
        leases = report.leases
        panels.append((3.0, lambda axes: _leases(axes, leases, report.plan.page_counts)))
    if report.steps is not None:
        steps = report.steps
        panels.append((2.4, lambda axes: _steps(axes, steps)))
    heights = [height for height, _ in panels] or [1.0]
    figure = Figure(figsize=(9, sum(heights) + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if panels:
        every = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (_, draw) in zip(every, panels, strict=True):
            draw(axes)
    figure.suptitle(_title(report), fontsize=11)
    figure.savefig(path)


def _calls(axes: Axes, report: Report) -> None:
    lines: dict[str, list[Line]] = {}
    for name, line in named_calls(report):
        lines.setdefault(name, []).append(line)
    for name, style in STYLES.items():
        if name in lines:
            found = lines[name]
            label = f"{name}: {found[0].call}"
            axes.plot(
                [line.page_count for line in found],
                [line.page_us for line in found],
                label=label,
                linewidth=1.3,
                **style,
            )
    left, right = PUBLISHED_EDGES
    _page_axis(axes, report.plan.page_counts, left=left)
    axes.axvline(right, color="#bbbbbb", linewidth=0.8)
    _published(axes)
    axes.set_ylabel("microseconds a page")
    axes.set_title("driver calls: medians; left of them, published ones of a GPU of others", fontsize=10, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def _published(axes: Axes) -> None:
    edge: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.6}
    for source, (x, marker, _) in zip(SOURCES, PUBLISHED, strict=True):
        for name, value in _drawn(source):
            axes.plot(x, value, marker=marker, markersize=10, color=STYLES[name]["color"], **edge)
        axes.plot([], [], marker=marker, markersize=9, color="white", label=f"{source.name}, published", **edge)
    lowest, highest = (math.log10(limit) for limit in axes.get_ylim())
    axes.set_ylim(axes.get_ylim())
    for source, (x, _, side) in zip(SOURCES, PUBLISHED, strict=True):
        words: dict[str, Any] = {"xytext": (-7, 0) if side == "right" else (7, 0), "ha": side, "va": "center"}
        floor = -1.0
        for name, value in _drawn(source):
            floor = max((math.log10(value) - lowest) / (highest - lowest), floor + NAME_GAP)
            place: dict[str, Any] = {
                "xycoords": ("data", "axes fraction"),
                "textcoords": "offset points",
                "fontsize": 7,
            }
            axes.annotate(name.removesuffix(" each"), (x, floor), **place, **words)


def _drawn(source: Source) -> list[tuple[str, float]]:
    """From the lowest to the highest."""
    return sorted(((name, us) for name, us in source.call_us.items() if name in STYLES), key=lambda item: item[1])


def _leases(axes: Axes, leases: Leases, page_counts: Sequence[int]) -> None:
    for phase, style in LEASE_STYLES.items():
        lines = sorted((line for line in leases.lines if line.phase == phase), key=lambda line: line.page_count)
        counts = [line.page_count for line in lines]
        axes.fill_between(
            counts,
            [line.call_us.p10_us for line in lines],
            [line.call_us.p90_us for line in lines],
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(counts, [line.call_us.median_us for line in lines], label=phase, linewidth=1.3, **style)
    axes.axhline(
        leases.message_us.median_us,
        color="black",
        linewidth=0.9,
        linestyle=(0, (6, 3)),
        label="an empty message",
    )
    _page_axis(axes, page_counts, left=min(page_counts) * 0.8)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_ylabel("microseconds")
    axes.set_title("round trips with vattd: medians, and from p10 to p90", fontsize=10, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def _steps(axes: Axes, steps: Steps) -> None:
    for place, line in enumerate(reversed(steps.lines)):
        step = line.step_us
        axes.plot([step.p10_us, step.p99_us], [place, place], color="#bbbbbb", linewidth=2, zorder=1)
        axes.plot([step.p10_us, step.p90_us], [place, place], color="#0072b2", linewidth=6, alpha=0.4, zorder=2)
        axes.plot(step.median_us, place, color="black", marker="|", markersize=16, markeredgewidth=2, zorder=3)
        axes.annotate(
            f"p99 {step.p99_us:,.0f}",
            (step.p99_us, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    names = [line.way.value for line in reversed(steps.lines)]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("microseconds a step")
    axes.set_title("KVCache.step: median, p10 to p90 (broad), to p99", fontsize=10, loc="left")
    _finish(axes, "x")


def _page_axis(axes: Axes, page_counts: Sequence[int], left: float) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(page_counts, [str(count) for count in page_counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left, max(page_counts) * 1.25)
    axes.set_xlabel("pages at a time")
    _finish(axes, "y")


def _finish(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(value: float, position: int | None) -> str:
    return f"{value:,g}"


def _title(report: Report) -> str:
    machine = report.environment
    simulated = "SIMULATED DRIVER, says nothing of any GPU: " if report.is_simulated else ""
    driver = f", driver {machine.gpu.driver_version}" if machine.gpu is not None else ""
    return (
        f"{simulated}{machine.device_name}{driver}, pages of {format_size(report.plan.page_size_bytes)}\n"
        f"vattd {machine.vattd_version}, {machine.cpu_model}, {machine.kernel}"
    )
