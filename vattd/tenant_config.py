"""The configuration file: tenants that exist from the start.

[tenants.chat]
min = "8GiB"            # or a part of the pool: "25%"
max = "40GiB"           # left out: the whole pool
weight = 2              # left out: 1
hard = true             # left out: false, the unused part of the min is lent to others
allow = ["alice", 1001, "@staff"]  # left out: the user that runs vattd
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vatt.errors import InvalidRequest, Overcommitted
from vatt.names import check_tenant_name
from vatt.sizes import format_size, parse_part
from vatt.users import parse_users
from vattd.guarantee import Access, MinMode
from vattd.reservation import Reservation, check_all

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS = ("min", "max", "weight", "hard", "allow")


def read_tenants(path: Path, pool_bytes: int, page_size_bytes: int, own_uid: int) -> dict[str, Reservation]:
    """Parts of the pool are rounded down to whole pages. Raises InvalidRequest that names the file, tenant and key;
    Overcommitted, with the file, if its mins do not fit the pool together."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}") from error
    try:
        reservations = _parse(document, pool_bytes, page_size_bytes, own_uid)
        check_all(reservations, page_size_bytes, pool_bytes)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from error
    except Overcommitted as error:
        raise Overcommitted(f"{path}: {error}. Lower a min, or start with a larger --pool-max") from error
    return reservations


def _parse(document: Mapping[str, Any], pool_bytes: int, page_size_bytes: int, own_uid: int) -> dict[str, Reservation]:
    _check_keys("the file", document, ("tenants",))
    tenants = document.get("tenants", {})
    if not isinstance(tenants, dict):
        raise InvalidRequest("tenants must be tables: [tenants.NAME]")
    return {name: _reservation(name, entry, pool_bytes, page_size_bytes, own_uid) for name, entry in tenants.items()}


def _reservation(name: str, entry: Any, pool_bytes: int, page_size_bytes: int, own_uid: int) -> Reservation:
    check_tenant_name(name)
    where = f"[tenants.{name}]"
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} must be a table")
    _check_keys(where, entry, KEYS)
    weight, hard, allow = entry.get("weight", 1), entry.get("hard", False), entry.get("allow", [own_uid])
    if type(weight) is not int:
        raise InvalidRequest(f"{where}: weight is a whole number, not {weight!r}")
    if not isinstance(hard, bool):
        raise InvalidRequest(f"{where}: hard is true or false, not {hard!r}")
    if not isinstance(allow, list) or any(isinstance(who, bool) or not isinstance(who, (str, int)) for who in allow):
        raise InvalidRequest(f"{where}: allow is a list like ['alice', 1001, '@staff']")
    try:
        users = parse_users(str(who) for who in allow)
        reservation = Reservation(
            access=Access(users.uids, users.gids),
            min_bytes=_size(entry, "min", pool_bytes, page_size_bytes) or 0,
            max_bytes=_size(entry, "max", pool_bytes, page_size_bytes),
            weight=weight,
            mode=MinMode.HARD if hard else MinMode.SOFT,
        )
        _check_sense(reservation, pool_bytes, page_size_bytes)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from error
    return reservation


def _check_sense(one: Reservation, pool_bytes: int, page_size_bytes: int) -> None:
    """What a reservation by itself cannot know. Raises InvalidRequest."""
    if one.min_bytes > pool_bytes:
        raise InvalidRequest(f"a min of {format_size(one.min_bytes)} is more than the pool's {format_size(pool_bytes)}")
    if one.mode is MinMode.HARD and not one.min_bytes:
        raise InvalidRequest("hard says what becomes of a min, and there is none: add for example min = '8GiB'")
    one.guarantee(page_size_bytes)  # a max may be less than a page


def _size(entry: Mapping[str, Any], key: str, pool_bytes: int, page_size_bytes: int) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidRequest(f"{key} is a size like '8GiB' or '25%', not {value!r}")
    try:
        return parse_part(str(value), pool_bytes, page_size_bytes)
    except InvalidRequest as error:
        raise InvalidRequest(f"{error} (key {key})") from error


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in table if key not in known]
    if unknown:
        raise InvalidRequest(f"{where} has an unknown key {unknown[0]!r}: there are {', '.join(known)}")
