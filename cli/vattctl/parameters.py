"""What people type, checked before anything is called: sizes, times, tenants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vatt.command_line import Time
from vatt.errors import InvalidRequest
from vatt.names import check_tenant_name
from vatt.sizes import parse_part, parse_size, parse_size_or_percent
from vatt.users import UsersAndGroups, parse_users
from vatt.v1 import vatt_pb2 as pb

NO_MAX = "none"
# No machine has so much, and the wire can still carry it.
MOST_BYTES = 1 << 60
FOREVER_S = float("inf")
FOREVER = "forever"


class Size(click.ParamType[int]):
    """Bytes."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class SizeOrPercent(click.ParamType[str]):
    """Stays as it was written until the pool is known: see `bytes_of`."""

    name = "size"

    def __init__(self, *, is_max: bool = False) -> None:
        self._is_max = is_max

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if self._is_max and value.strip().lower() == NO_MAX:
            return NO_MAX
        try:
            size = parse_size_or_percent(value, MOST_BYTES)
        except InvalidRequest as error:
            self.fail(f"{error}{', or none' if self._is_max else ''}", param, ctx)
        if size > MOST_BYTES:
            self.fail(f"{value!r} is more than any machine has: write for example 8GiB", param, ctx)
        if self._is_max and not size:
            self.fail(f"{value!r} is no max: write for example 8GiB, or none for no max at all", param, ctx)
        return value


def bytes_of(text: str, pool: pb.Pool) -> int:
    return parse_part(text, pool.max_bytes, pool.page_size_bytes)


class Term(Time):
    """How long something holds; 0 s stands for ever, as on the wire."""

    name = "term"

    def __init__(self) -> None:
        super().__init__(least_s=1.0, hint=f", or {FOREVER}")

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return 0.0 if value == FOREVER else super().convert(value, param, ctx)


class TenantName(click.ParamType[str]):
    name = "tenant"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            check_tenant_name(value)
        except InvalidRequest as error:
            self.fail(f"{error}; write for example chat or team-a.chat", param, ctx)
        return value


def parse_allowed(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> UsersAndGroups | None:
    """None: nobody was named."""
    try:
        return parse_users(texts) if texts else None
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def wait_option(until: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--wait`, as long as it takes, or `--wait 30s`. None: not at all."""
    return click.option(
        "--wait",
        "wait_s",
        type=Time(hint="; without a time, --wait is the last word of the command"),
        metavar="[TIME]",
        is_flag=False,
        flag_value=FOREVER_S,
        help=f"Wait until {until}: so long at most, or, as the last word of the command, as long as it takes.",
    )
