"""`vattctl bench`: parse, run, render."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vatt.command_line import EXIT_REFUSED
from vatt.errors import InvalidRequest, VattError
from vatt.sockets import search_dirs
from vattctl.bench.plan import DEFAULT_S, QUICK_S, Part, Plan, make_plan
from vattctl.bench.turns import Interrupted, interruptible
from vattctl.daemon import find, socket_dir_option
from vattctl.output import as_json, output_option, show
from vattctl.parameters import Size, TenantName
from vattention.vmm import default_device

ALL_PARTS = [part.value for part in Part]
DRAW_EVERY_S = 0.2


@click.command(short_help="Measure what pages cost on this device, for a report.")
@click.option(
    "--gpu",
    "device",
    metavar="N|UUID|host",
    help="What to measure.  [default: GPU 0 if there is one, else host memory]",
)
@click.option("--quick", is_flag=True, help="Some seconds instead of about a minute.")
@click.option(
    "--only",
    type=click.Choice(ALL_PARTS),
    multiple=True,
    help="Only this part; may be given more than once. Leases and steps need a vattd, steps need torch.",
)
@click.option("--memory", type=Size(), help="The most that pages may take at one time.  [default: 512 pages]")
@click.option("--page-size", type=Size(), help="Of a page.  [default: GPU its granularity, host 64KiB]")
@click.option(
    "--attach", is_flag=True, help="Lease from the vattd that runs, at an engine's pace, not from a private one."
)
@click.option(
    "--tenant", type=TenantName(), default="bench", show_default=True, help="With --attach: as whom to lease."
)
@socket_dir_option
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", help="Draw the figures as well."
)
@click.option("--markdown", is_flag=True, help="Print a report to paste into an issue, with more tables.")
@output_option
def bench(
    device: str | None,
    quick: bool,
    only: Sequence[str],
    memory: int | None,
    page_size: int | None,
    attach: bool,
    tenant: str,
    socket_dir: Path | None,
    plot: Path | None,
    markdown: bool,
    output: str,
) -> None:
    """Measure on this device what pages cost: driver calls, leases, steps; beside published figures.

    CALLS: create, export, import, map, set-access, unmap and release, for 1, 16, 64 and 512 pages at a time. LEASES:
    round trips with a vattd, private unless --attach. STEPS: KVCache.step with pages mapped ahead, in the step, or
    there already. What was measured where is told in full, and nothing that names a host, a user, a path, a process or
    a device's UUID: a report can be sent as it is.

    On a GPU it makes a CUDA context, some hundred MB beside the pages, as engines have one. Every page is released at
    the end, also after Ctrl-C. If a part fails, the rest is printed and the exit status is 1.

    \b
    Examples:
      vattctl bench
      vattctl bench --quick --gpu host
      vattctl bench --markdown --plot bench.png >report.md
      vattctl bench --only calls --memory 128MiB
      vattctl bench --attach -o json >bench.json
    """
    if markdown and output == "json":
        raise click.UsageError("--markdown and -o json are two forms of the same: leave one out")
    if attach and page_size is not None:
        raise click.UsageError("--page-size: with --attach it is that of the vattd that runs")
    _check_plot(plot)
    plan = _plan(device, quick, only, memory, page_size, attach, tenant, socket_dir)
    from vattctl.bench.render import markdown as as_markdown
    from vattctl.bench.render import render
    from vattctl.bench.run import run

    try:
        with interruptible() as check, _progress(plan, check) as progress:
            report = run(plan, progress, _tell_failure)
    except Interrupted:
        click.echo("vattctl: interrupted: all pages were released", err=True)
        raise click.exceptions.Exit(EXIT_REFUSED) from None
    if output == "json":
        click.echo(as_json(report.to_plain()))
    elif markdown:
        click.echo(as_markdown(report))
    else:
        show(render(report))
    if plot is not None:
        from vattctl.bench.plot import plot as draw

        draw(plot, report)
        click.echo(f"wrote {plot}", err=True)
    if report.failed:
        raise click.exceptions.Exit(EXIT_REFUSED)


def _plan(
    device: str | None,
    quick: bool,
    only: Sequence[str],
    memory: int | None,
    page_size: int | None,
    attach: bool,
    tenant: str,
    socket_dir: Path | None,
) -> Plan:
    from vattctl.bench.lender import check_alone, page_size_of

    parts = [Part(name) for name in only or ALL_PARTS]
    sockets = find(device, socket_dir) if attach else None
    if sockets is not None:
        page_size = page_size_of(sockets, tenant)
    plan = make_plan(
        sockets.device if sockets is not None else device if device is not None else default_device(),
        page_size_bytes=page_size,
        memory_bytes=memory,
        parts=parts,
        seconds=QUICK_S if quick else DEFAULT_S,
        attach=sockets,
        tenant=tenant,
    )
    check_alone(plan, [socket_dir] if socket_dir is not None else search_dirs(os.environ))
    return plan


def _check_plot(plot: Path | None) -> None:
    """A bench of a minute should not end with finding that out."""
    if plot is None:
        return
    if find_spec("matplotlib") is None:
        raise VattError("--plot needs matplotlib: pip install matplotlib")
    if not plot.absolute().parent.is_dir():
        raise InvalidRequest(f"--plot {plot}: there is no folder {plot.parent}")


def _tell_failure(part: Part, error: VattError) -> None:
    click.echo(f"vattctl: {part.value} failed, and are left out: {error}", err=True)


@contextmanager
def _progress(plan: Plan, check: Callable[[], None]) -> Iterator[Callable[[Part, float], None]]:
    """On stderr, where somebody watches. It is drawn between two turns: a thread that draws would be measured too."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn()
    drawn_s = 0.0
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        tasks = {part: bar.add_task(part.value, total=1.0) for part in Part if part in plan.parts}

        def note(part: Part, done: float) -> None:
            nonlocal drawn_s
            check()
            bar.update(tasks[part], completed=done)
            if time.monotonic() >= drawn_s + DRAW_EVERY_S:
                bar.refresh()
                drawn_s = time.monotonic()

        yield note
