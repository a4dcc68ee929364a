"""`vattctl reserve` and `vattctl unreserve`: what a tenant is promised."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vatt.command_line import SIZE_WORDS, TIME_WORDS
from vatt.errors import InvalidRequest, Overcommitted, VattError
from vatt.protocol import MAX_WEIGHT
from vatt.sizes import format_size
from vatt.users import UsersAndGroups
from vatt.v1 import vatt_pb2 as pb
from vattctl.completion import complete_reserved, complete_tenants
from vattctl.daemon import Admin, find, gpu_option, socket_dir_option
from vattctl.output import output_option, show, to_plain, verb_json
from vattctl.parameters import NO_MAX, SizeOrPercent, TenantName, Term, bytes_of, parse_allowed, wait_option
from vattctl.waiting import wait_for
from vattctl.words import (
    access_words,
    guarantee_words,
    over_max_notes,
    promise_words,
    source_words,
    until_words,
    waiting_words,
)


@click.command(
    epilog=f"{SIZE_WORDS} {TIME_WORDS}", short_help="Set what a tenant is promised, and the most it may have."
)
@click.argument("tenant", type=TenantName(), shell_complete=complete_tenants)
@click.option("--min", "least", type=SizeOrPercent(), metavar="SIZE|PERCENT", help="Promised, whatever others do.")
@click.option(
    "--max", "most", type=SizeOrPercent(is_max=True), metavar="SIZE|PERCENT|none", help="The most it may lease."
)
@click.option(
    "--weight",
    type=click.IntRange(1, MAX_WEIGHT),
    metavar="N",
    help="Its share of what is left beyond all mins, beside other tenants'.",
)
@click.option(
    "--hard/--soft",
    "is_hard",
    default=None,
    help="The unused part of the min is kept free; or lent to others and asked back.",
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="UID|NAME|@GID|@GROUP",
    callback=parse_allowed,
    help="Who may use the tenant; may be given again. Replaces who may now.",
)
@click.option(
    "--for",
    "duration_s",
    type=Term(),
    metavar="TIME|forever",
    help="How long all of it holds from now on; `forever` is until unreserve.  [default: as before, at first forever]",
)
@wait_option("the min is held (a soft one is as long as its tenant lacks nothing that it asked for)")
@gpu_option
@socket_dir_option
@output_option
def reserve(
    tenant: str,
    least: str | None,
    most: str | None,
    weight: int | None,
    is_hard: bool | None,
    allowed: UsersAndGroups | None,
    duration_s: float | None,
    wait_s: float | None,
    device: str | None,
    socket_dir: Path | None,
    output: str,
) -> None:
    """Set what a tenant is promised, the most it may have, and who may use it.

    What is not given stays as it was. A PERCENT of the pool is turned into bytes once, now, and those stay when the
    pool changes. It holds over restarts of vattd, and comes before what the configuration file says. The tenant need
    not exist yet; sessions that are attached are told.

    \b
    Examples:
      vattctl reserve chat --min 8GiB --max 50%
      vattctl reserve chat --min 25% --hard --allow alice --allow @staff
      vattctl reserve batch --max 4GiB --weight 1 --for 2h
      vattctl reserve chat --min 12GiB --wait 30s
      vattctl reserve batch --max none
    """
    if (least, most, weight, is_hard, allowed, duration_s) == (None,) * 6:
        raise click.UsageError(f"nothing to set: write for example `vattctl reserve {tenant} --min 8GiB --max 50%`")
    with Admin(find(device, socket_dir), "reserve") as admin:
        status = admin.status()
        before = _find(status, tenant) or pb.Tenant(name=tenant)
        request = _request(before, least, most, status.pool)
        if weight is not None:
            request.weight = weight
        if is_hard is not None:
            request.min_mode = pb.MIN_MODE_HARD if is_hard else pb.MIN_MODE_SOFT
        if allowed is not None:
            request.access.CopyFrom(pb.AccessList(uids=sorted(allowed.uids), gids=sorted(allowed.gids)))
        if duration_s is not None:
            request.duration.FromMilliseconds(round(duration_s * 1000))
        _check_sense(request, before, waits=wait_s is not None)
        _reserve(admin, request, before)
        left = "" if wait_s is None else _wait(admin, tenant, wait_s)
        _show(admin, tenant, output)
    if left:
        raise VattError(f"the min of {tenant} is not held in time: {left}. The reservation stays")


@click.command()
@click.argument("tenant", type=TenantName(), shell_complete=complete_reserved)
@gpu_option
@socket_dir_option
@output_option
def unreserve(tenant: str, device: str | None, socket_dir: Path | None, output: str) -> None:
    """Take back what `reserve` set.

    The tenant has what the configuration file says again, or no guarantee. Its sessions keep what they hold, and are
    asked back what others were promised.

    \b
    Example:
      vattctl unreserve chat
    """
    with Admin(find(device, socket_dir), "unreserve") as admin:
        admin.unreserve(tenant)
        _show(admin, tenant, output)


def _request(before: pb.Tenant, least: str | None, most: str | None, pool: pb.Pool) -> pb.ReserveRequest:
    request = pb.ReserveRequest(tenant=before.name)
    if least is not None:
        request.min_bytes = bytes_of(least, pool)
    if most is not None:
        request.max_bytes = 0 if most == NO_MAX else bytes_of(most, pool)
    if request.min_bytes > pool.max_bytes:  # said first: no max and no other tenant's min would help
        raise InvalidRequest(
            f"a min of {format_size(request.min_bytes)} is more than the pool's {format_size(pool.max_bytes)}: ask for "
            "less, or start vattd with a larger --pool-max"
        )
    if request.max_bytes and request.min_bytes > request.max_bytes:
        raise click.UsageError(
            f"a min of {format_size(request.min_bytes)} is more than a max of {format_size(request.max_bytes)}: "
            f"write for example --min {most} --max {least}"
        )
    return request


def _check_sense(request: pb.ReserveRequest, before: pb.Tenant, *, waits: bool) -> None:
    """Raises InvalidRequest for what would have no effect: there is no min, or nothing, that it could be about."""
    name, sets_min = request.tenant, request.HasField("min_bytes")
    if not (request.min_bytes if sets_min else before.guarantee.min_bytes):
        # `--min 0 --soft` is how all is as at first.
        if request.min_mode == pb.MIN_MODE_HARD or (request.min_mode == pb.MIN_MODE_SOFT and not sets_min):
            mode = "--hard" if request.min_mode == pb.MIN_MODE_HARD else "--soft"
            raise InvalidRequest(
                f"{mode} says what becomes of a min, and {name} has none: write for example --min 8GiB {mode}"
            )
        if waits:
            raise InvalidRequest(f"--wait is for a min, and {name} has none: leave it out, or add --min 8GiB")
    if not before.source and {field.name for field, _ in request.ListFields()} == {"tenant", "duration"}:
        raise InvalidRequest(f"nothing is reserved for {name}, now or before: write for example --min 8GiB --for 2h")


def _reserve(admin: Admin, request: pb.ReserveRequest, before: pb.Tenant) -> None:
    try:
        admin.reserve(request)
    except Overcommitted as error:
        raise Overcommitted(f"{error}. Ask for less, or lower another's: see `vattctl tenants`") from error
    if not before.source and before.HasField("owner_uid") and not request.HasField("access"):
        click.echo(
            f"{before.name} stays for {access_words(before)}: --allow says who else may use it",
            err=True,
        )
    if before.source == "config":
        click.echo(
            f"{before.name} stands in vattd's configuration file: from now on this reservation comes before the file, "
            f"also in what you did not give; `vattctl unreserve {before.name}` goes back to the file",
            err=True,
        )


def _wait(admin: Admin, tenant: str, wait_s: float) -> str:
    def what_is_left(status: pb.GetStatusResponse) -> str:
        found = _find(status, tenant)
        if found is None or found.source != "command":
            raise VattError(f"the reservation of {tenant} was taken back: see `vattctl tenants`")
        if found.promise.state in (pb.Promise.STATE_UNSPECIFIED, pb.Promise.STATE_HELD):
            return ""
        return str(promise_words(found.promise, status.sessions, time.time()))

    return wait_for(admin, what_is_left, wait_s, "the reservation stays, see `vattctl tenants`")


def _find(status: pb.GetStatusResponse, tenant: str) -> pb.Tenant | None:
    return next((one for one in status.tenants if one.name == tenant), None)


def _show(admin: Admin, name: str, output: str) -> None:
    """What the tenant has now, and how far it is kept."""
    status = admin.status()
    tenant = _find(status, name)
    if output == "json":
        click.echo(verb_json(admin.sockets.device, tenant=to_plain(tenant or pb.Tenant(name=name))))
        return
    if tenant is None or not tenant.source:
        show(Text(f"{name}: nothing is reserved; it may have what others leave"))
        return
    now_s = time.time()
    grid = Table.grid(padding=(0, 2))
    grid.add_row("allow", access_words(tenant))
    if tenant.source == "command":
        grid.add_row("until", until_words(tenant, now_s) or f"vattctl unreserve {name}")
    grid.add_row("now", _now_words(tenant))
    for note in over_max_notes(tenant, status.pool):
        grid.add_row("", note)
    if tenant.HasField("promise"):
        grid.add_row("promise", promise_words(tenant.promise, status.sessions, now_s))
    title = Text(f"{name}: {guarantee_words(tenant.guarantee)}; set by {source_words(tenant.source)}")
    show(Group(title, grid))


def _now_words(tenant: pb.Tenant) -> str:
    count = tenant.session_count
    sessions = "1 session" if count == 1 else f"{count or 'no'} sessions"
    waits = f"; waiting: {waiting_words(tenant)}" if tenant.waiting_leases else ""
    return f"{format_size(tenant.leased_bytes)} leased, {sessions}{waits}"
