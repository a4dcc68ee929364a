"""A picture of a replay: bytes over virtual time. Lines differ in dashes, for print without colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vatt.sizes import format_size
from vattctl.replay.figures import Outcome, Series, Timeline
from vattctl.replay.run import Settings
from vattctl.replay.trace import Trace

# More would be a thicket on an hour of requests.
POINTS = 240
GIB = float(1 << 30)
# Virtual time is in minutes from here on.
LONG_S = 600.0
OURS: dict[str, Any] = {"color": "black", "linewidth": 1.6}
KEPT: dict[str, Any] = {"facecolor": "#9ecae1", "edgecolor": "none"}
OTHERS: list[dict[str, Any]] = [
    {"color": "#d55e00", "linestyle": (0, (6, 2)), "linewidth": 1.2},
    {"color": "#d55e00", "linestyle": (0, (1, 1.2)), "linewidth": 1.6},
    {"color": "#0072b2", "linestyle": (0, (4, 1.5, 1, 1.5)), "linewidth": 1.2},
]


def plot(path: Path, trace: Trace, settings: Settings, outcome: Outcome) -> None:
    """Write a PNG."""
    timeline = outcome.timeline.thinned(POINTS)
    is_long = timeline.time_s[-1] > LONG_S
    time = timeline.time_s / 60 if is_long else timeline.time_s
    # The longest context's static slots would only press everything else to the ground.
    shown = [name for name in timeline.others if not name.startswith("static")]
    statics = [name for name in timeline.others if name.startswith("static")][:1]
    figure = Figure(figsize=(9, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    whole, beyond = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    _draw_whole(whole, time, timeline, statics, settings)
    _draw_beyond(beyond, time, timeline, shown)
    beyond.set_xlabel("virtual time, minutes" if is_long else "virtual time, seconds")
    figure.suptitle(_title(trace, settings), fontsize=11)
    figure.savefig(path)


def _draw_whole(axes: Axes, time: Series, timeline: Timeline, statics: list[str], settings: Settings) -> None:
    held = timeline.running_bytes + timeline.kept_bytes
    axes.fill_between(time, 0, timeline.token_bytes / GIB, facecolor="#c8c8c8", label="filled by tokens")
    axes.fill_between(time, timeline.running_bytes / GIB, held / GIB, **KEPT, label="kept for the next requests")
    axes.plot(time, timeline.running_bytes / GIB, **OURS, label="mapped for running requests")
    for name, style in zip(statics, OTHERS, strict=False):
        axes.plot(time, timeline.others[name] / GIB, **style, label=f"{name}: the same requests")
    axes.axhline(settings.budget_bytes / GIB, color="black", linewidth=0.8, linestyle=(0, (8, 4)), label="budget")
    axes.set_ylabel("GiB")
    _finish(axes)


def _draw_beyond(axes: Axes, time: Series, timeline: Timeline, names: list[str]) -> None:
    over = (timeline.running_bytes - timeline.token_bytes) / GIB
    axes.fill_between(time, over, over + timeline.kept_bytes / GIB, **KEPT, label="kept for the next requests")
    axes.plot(time, over, **OURS, label="mapped for running requests")
    for name, style in zip(names, reversed(OTHERS), strict=False):
        axes.plot(
            time, (timeline.others[name] - timeline.token_bytes) / GIB, **style, label=f"{name}: the same requests"
        )
    axes.set_ylabel("GiB beyond what tokens fill")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)


def _title(trace: Trace, settings: Settings) -> str:
    page, budget = format_size(settings.page_size_bytes), format_size(settings.budget_bytes)
    return (
        f"{trace.name}: {len(trace.requests):,} requests, {settings.pace}\n"
        f"{settings.model.name}, {settings.layout.value}, pages of {page}, budget {budget}"
    )
