"""`vattctl evict`: have a session leave."""

from __future__ import annotations

from pathlib import Path

import click

from vatt.command_line import TIME_WORDS
from vatt.errors import SessionUnknown, VattError
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.completion import complete_sessions
from vattctl.confirm import confirm
from vattctl.daemon import Admin, find, gpu_option, socket_dir_option
from vattctl.output import output_option, verb_json
from vattctl.parameters import wait_option
from vattctl.waiting import wait_for
from vattctl.words import session_words, some_of


@click.command(epilog=TIME_WORDS, short_help="Ask a session to leave, or kill it.")
@click.argument("session_id", metavar="SESSION", shell_complete=complete_sessions)
@click.option("--kill", is_flag=True, help="Kill its process (SIGKILL) instead of asking.")
@click.option("--yes", is_flag=True, help="Do not ask whether you are sure.")
@wait_option("its pages are back, or with --kill until it is gone")
@gpu_option
@socket_dir_option
@output_option
def evict(
    session_id: str,
    kill: bool,
    yes: bool,
    wait_s: float | None,
    device: str | None,
    socket_dir: Path | None,
    output: str,
) -> None:
    """Ask a session for all its pages, and lend it no more; or kill its process.

    A session that was asked keeps what it has until it gives it back. SESSION is as `vattctl status` shows it.

    \b
    Examples:
      vattctl evict 4242-1
      vattctl evict 4242-1 --yes --wait 30s
      vattctl evict 4242-1 --kill
    """
    with Admin(find(device, socket_dir), "evict") as admin:
        status = admin.status()
        session = _session(status, session_id)
        if session is None:
            raise SessionUnknown(f"no session {session_id!r}: {_instead(status, session_id)}")
        confirm(_question(session, kill, status), yes=yes)
        leased_bytes = admin.evict(session_id, kill=kill)
        if output != "json":
            click.echo(_done_words(session, kill, leased_bytes))
        left = "" if wait_s is None else _wait(admin, session_id, kill, wait_s)
        if output == "json":
            click.echo(_json(admin, session, kill))
    if left:
        again = "" if kill else f": `vattctl evict {session_id} --kill` ends its process"
        raise VattError(f"{left}{again}")
    if wait_s is not None and output != "json":
        click.echo(f"session {session_id} is gone" if kill else f"session {session_id} holds nothing any more")


def _session(status: pb.GetStatusResponse, session_id: str) -> pb.Session | None:
    return next((one for one in status.sessions if one.session_id == session_id), None)


def _json(admin: Admin, before: pb.Session, kill: bool) -> str:
    """What has become of it."""
    now = _session(admin.status(), before.session_id)
    return verb_json(
        admin.sockets.device,
        session_id=before.session_id,
        tenant=before.tenant,
        pid=before.pid,
        killed=kill,
        state=now.state if now is not None else "ended",
        leased_bytes=now.leased_bytes if now is not None else 0,
    )


def _instead(status: pb.GetStatusResponse, name: str) -> str:
    """What to type, also for who named a tenant."""
    if name not in (tenant.name for tenant in status.tenants):
        return "see `vattctl status`"
    own = [one.session_id for one in status.sessions if one.tenant == name]
    if not own:
        return f"{name} is a tenant that has no session now, see `vattctl status`"
    return f"{name} is a tenant, name one of its sessions ({some_of(own)}), see `vattctl status`"


def _question(session: pb.Session, kill: bool, status: pb.GetStatusResponse) -> str:
    has = f"session {session_words(session)} that leases {format_size(session.leased_bytes)}"
    if kill:
        others = [session_words(one) for one in status.sessions if one.pid == session.pid and one != session]
        also = f"; it has other sessions too, {some_of(others)}" if others else ""
        return f"Kill process {session.pid}, {has}{also}?"
    return f"Ask {has} to leave? No page is lent to it any more."


def _done_words(session: pb.Session, kill: bool, leased_bytes: int) -> str:
    if kill:
        return f"process {session.pid} of session {session_words(session)} was killed"
    words = f"session {session_words(session)} was asked to leave: it holds {format_size(leased_bytes)}"
    if session.state == "fenced":
        words += "; its stream is broken, so it cannot hear now (--kill ends it)"
    return words


def _wait(admin: Admin, session_id: str, kill: bool, wait_s: float) -> str:
    def what_is_left(status: pb.GetStatusResponse) -> str:
        session = _session(status, session_id)
        if session is None or (not session.leased_bytes and not kill):
            return ""
        holds = f"session {session_words(session)} holds {format_size(session.leased_bytes)}"
        return f"{holds}, its process {session.pid} has not ended yet" if kill else holds

    done = "the process was killed" if kill else "the session stays asked to leave"
    return wait_for(admin, what_is_left, wait_s, done)
