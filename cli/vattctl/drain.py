"""`vattctl drain`: let a vattd run empty, before work on the machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from vatt.command_line import TIME_WORDS
from vatt.errors import VattError
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import Admin, find, gpu_option, socket_dir_option
from vattctl.output import output_option, verb_json
from vattctl.parameters import wait_option
from vattctl.waiting import wait_for
from vattctl.words import session_words, some_of


@click.command(epilog=TIME_WORDS, short_help="Begin nothing new, and let vattd run empty.")
@wait_option("nothing is leased any more")
@click.option("--resume", is_flag=True, help="End the drain: take new sessions and requests again.")
@gpu_option
@socket_dir_option
@output_option
def drain(wait_s: float | None, resume: bool, device: str | None, socket_dir: Path | None, output: str) -> None:
    """Begin nothing new: refuse new sessions and requests, and ask for idle pages back.

    Running requests go on and may grow. A drain does not outlive vattd: one that starts anew takes requests.

    \b
    Examples:
      vattctl drain
      vattctl drain --wait 10m && vattd stop
      vattctl drain --resume
    """
    if resume and wait_s is not None:
        raise click.UsageError("--resume ends the drain, there is nothing to wait for: leave out --wait")
    with Admin(find(device, socket_dir), "drain") as admin:
        leased_bytes = admin.drain(resume=resume)
        left = _still_leased(leased_bytes, []) if wait_s is None else _wait(admin, wait_s)
        if output == "json":
            click.echo(_json(admin))
    if left and wait_s is not None:
        raise VattError(f"{left}. The drain goes on: `vattctl drain --resume` ends it")
    if output == "json":
        return
    if resume:
        click.echo("vattd takes new sessions and requests again")
    else:
        click.echo(f"vattd is drained, {left or 'nothing is leased'}; `vattctl drain --resume` ends it")


def _json(admin: Admin) -> str:
    status = admin.status()
    leased_bytes = sum(one.leased_bytes for one in status.sessions)
    return verb_json(admin.sockets.device, state=status.daemon.state, leased_bytes=leased_bytes)


def _wait(admin: Admin, wait_s: float) -> str:
    def what_is_left(status: pb.GetStatusResponse) -> str:
        if status.daemon.state != "draining":
            raise VattError(f"the drain is over: vattd is {status.daemon.state}, see `vattctl status`")
        return _still_leased(sum(one.leased_bytes for one in status.sessions), status.sessions)

    return wait_for(admin, what_is_left, wait_s, "the drain goes on, `vattctl drain --resume` ends it")


def _still_leased(leased_bytes: int, sessions: Iterable[pb.Session]) -> str:
    if not leased_bytes:
        return ""
    holders = sorted((one for one in sessions if one.leased_bytes), key=lambda one: -one.leased_bytes)
    by = some_of(f"{session_words(one)} {format_size(one.leased_bytes)}" for one in holders)
    return f"{format_size(leased_bytes)} still leased" + (f" by {by}" if by else "")
