"""A replay's outcome as people and as programs read it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vatt.sizes import format_size
from vattctl.replay.figures import MapFigures, Outcome, SchemeFigures
from vattctl.replay.models import Double
from vattctl.replay.run import Settings
from vattctl.replay.trace import Trace
from vattention import Layout


def render(trace: Trace, settings: Settings, outcome: Outcome) -> RenderableType:
    return Group(_head(trace, settings), Text(), _schemes(outcome), Text(), _maps(outcome.maps))


def _head(trace: Trace, settings: Settings) -> RenderableType:
    double = Double.of(settings.model, settings.page_size_bytes)
    page, small_page = format_size(settings.page_size_bytes), format_size(double.small_page_bytes)
    cut = trace.longer_than(settings.context_length)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        "trace",
        f"{trace.name}, {len(trace.requests):,} requests, {settings.pace}; a step is {settings.step_s * 1000:g} ms",
    )
    if cut:
        head.add_row("", f"{cut:,} requests cut to the context of {settings.context_length:,} tokens")
    head.add_row(
        "model",
        f"{settings.model.name}, {format_size(settings.model.token_bytes)} a token; {settings.layout.value}, "
        f"pages of {page}",
    )
    head.add_row(
        "budget",
        f"{format_size(settings.budget_bytes)}: {settings.budget_pages:,} pages, {settings.slot_count:,} slots of "
        f"{settings.context_length:,} tokens at most",
    )
    if double.factor > 1:
        head.add_row("run on", f"host memory, where pages of {small_page} stand for {page}; sizes here are scaled back")
    if settings.layout is Layout.PER_LAYER:
        head.add_row("", "on the host this layout grows in longer runs than on a GPU, to save kernel mappings")
    return head


def _schemes(outcome: Outcome) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("KV HELD BY", no_wrap=True)
    for title in ("RUNNING", "MOST", "WASTE", "PREEMPTED", "DONE AFTER"):
        table.add_column(title, justify="right", no_wrap=True)
    for figures in outcome.schemes:
        table.add_row(*_row(figures))
    for name in outcome.too_small:
        table.add_row(name, "0", "0", "-", "-", "the largest request does not fit")
    return table


def _row(figures: SchemeFigures) -> list[str]:
    return [
        figures.name,
        f"{figures.running_mean:.1f}",
        f"{figures.running_max:,}",
        f"{figures.waste_fraction:.2%}",
        f"{figures.preemption_count:,}",
        f"{figures.duration_s:,.0f} s",
    ]


def _maps(maps: MapFigures) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        "maps avoided",
        f"{maps.avoided_fraction:.1%}: requests needed {maps.needed_pages:,} pages, {maps.mapped_pages:,} were mapped",
    )
    grid.add_row(
        "unmapped",
        f"{maps.unmapped_pages:,} pages, {maps.unmapped_on_request_path_pages:,} of them while a step waited",
    )
    grid.add_row("held over need", f"{maps.most_held_over_need_fraction:.1%} of the budget at most")
    grid.add_row("kernel mappings", f"{maps.most_kernel_mappings:,} at most")
    return grid


def to_plain(trace: Trace, settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """For JSON: raw numbers, sizes in the model's bytes."""
    double = Double.of(settings.model, settings.page_size_bytes)
    return {
        "trace": trace.name,
        "request_count": len(trace.requests),
        "cut_request_count": trace.longer_than(settings.context_length),
        "model": settings.model.name,
        "token_bytes": settings.model.token_bytes,
        "layout": settings.layout.value,
        "page_size_bytes": settings.page_size_bytes,
        "scale_factor": double.factor,
        "budget_bytes": settings.budget_bytes,
        "slot_count": settings.slot_count,
        "context_length": settings.context_length,
        "speed": settings.speed,
        "step_s": settings.step_s,
        "schemes": [asdict(figures) for figures in outcome.schemes],
        "schemes_too_small": outcome.too_small,
        "maps": {
            **asdict(outcome.maps),
            "avoided_fraction": outcome.maps.avoided_fraction,
            "most_held_over_need_fraction": outcome.maps.most_held_over_need_fraction,
        },
    }
