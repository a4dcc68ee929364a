"""`vattctl replay`: parse, run, render."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import Progress

from vatt.errors import InvalidRequest, VattError
from vattctl.output import output_option, show
from vattctl.parameters import Size
from vattctl.replay.models import MODELS
from vattctl.replay.trace import CARRIED, read_trace

LAYOUTS = ["per_layer", "megacache", "fused"]
# An hour in a thousand.
LEAST_SPEED = 0.001


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number to count with")
    return value


def _speed(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if 0 < _finite(context, parameter, value) < LEAST_SPEED:
        raise click.BadParameter(f"at least {LEAST_SPEED}, or 0 for no waiting")
    return value


def _complete_trace(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Those that come with the package, and files."""
    own = [CompletionItem(name) for name in CARRIED if name.startswith(incomplete)]
    return [*own, CompletionItem(incomplete, type="file")]


@click.command(short_help="Replay a request trace, and compare ways to hold its KV.")
@click.argument("trace_name", metavar="TRACE", shell_complete=_complete_trace)
@click.option(
    "--model", type=click.Choice(list(MODELS)), default="llama-3-8b", show_default=True, help="Whose KV it would be."
)
@click.option("--layout", type=click.Choice(LAYOUTS), default="fused", show_default=True, help="Of the KV cache.")
@click.option("--page-size", type=Size(), default="2MiB", show_default=True, help="Of the GPU that is stood for.")
@click.option("--budget", type=Size(), default="20GiB", show_default=True, help="Memory for KV, of every scheme.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, max=1e6),
    callback=_speed,
    default=1.0,
    show_default=True,
    help="How many times faster requests arrive than in the trace; 0: all of them wait from the start.",
)
@click.option(
    "--step-ms",
    type=click.FloatRange(min=0.001, max=60_000),
    callback=_finite,
    default=25.0,
    show_default=True,
    help="A decode step.",
)
@click.option("--max-requests", type=click.IntRange(min=1), metavar="N", help="Only the first N of the trace.")
@click.option(
    "--slots", type=click.IntRange(min=1, max=65_536), default=512, show_default=True, help="Requests at one time."
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Tokens a request may have; longer ones are cut.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", help="Draw bytes over virtual time."
)
@output_option
def replay(
    trace_name: str,
    model: str,
    layout: str,
    page_size: int,
    budget: int,
    speed: float,
    step_ms: float,
    max_requests: int | None,
    slots: int,
    context: int,
    plot: Path | None,
    output: str,
) -> None:
    """Replay a request trace in virtual time, and compare ways to hold its KV at one budget.

    TRACE is azure_conv, azure_code, or a csv file with the columns arrival_s, prompt_tokens and output_tokens. Its
    requests go through the real library and a private vattd on host memory, page by page, with pages scaled down. What
    that is compared with is arithmetic, under the same rules of admission: static reservation, and PagedAttention with
    blocks of 16 and 256 tokens.

    RUNNING is the average number of requests in the batch until the last one was admitted. WASTE is the part of the
    memory behind them that no token fills; vattention's includes pages mapped ahead of tokens, and those that a
    request took over from a longer one and keeps while memory is plentiful: with --speed 0 there are few.
    MAPS AVOIDED: pages that requests found mapped already, kept from finished ones. HELD OVER NEED: all that is mapped
    or at hand, less what tokens need.

    \b
    Examples:
      vattctl replay azure_conv
      vattctl replay azure_conv --speed 0 --max-requests 5000 --layout megacache
      vattctl replay azure_code --model phi-2 --budget 60GiB --plot code.png
    """
    trace = read_trace(trace_name)
    trace = trace.first(max_requests or len(trace.requests))
    _check_installed(plot)
    from vattctl.replay.render import render, to_plain
    from vattctl.replay.run import Settings
    from vattctl.replay.run import replay as run
    from vattention import Layout

    settings = Settings(MODELS[model], Layout(layout), page_size, budget, speed, step_ms / 1000, slots, context)
    with _progress(len(trace.requests)) as progress:
        outcome = run(trace, settings, progress)
    if output == "json":
        click.echo(json.dumps(to_plain(trace, settings, outcome), indent=2))
    else:
        show(render(trace, settings, outcome))
    if plot is not None:
        from vattctl.replay.plot import plot as draw

        draw(plot, trace, settings, outcome)
        click.echo(f"wrote {plot}", err=True)


def _check_installed(plot: Path | None) -> None:
    """vattctl itself needs neither; a replay of minutes should not end with finding that out."""
    if find_spec("torch") is None:
        raise VattError("replay needs torch, as an engine does: pip install torch")
    if plot is None:
        return
    if find_spec("matplotlib") is None:
        raise VattError("--plot needs matplotlib: pip install matplotlib")
    if not plot.absolute().parent.is_dir():
        raise InvalidRequest(f"--plot {plot}: there is no folder {plot.parent}")


@contextmanager
def _progress(request_count: int) -> Iterator[Callable[[int], None]]:
    """On stderr, where somebody watches."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("requests done", total=request_count)
        yield lambda done: bar.update(task, completed=done)
