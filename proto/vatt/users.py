"""Users and groups as people write them: `1000`, `alice`, `@100`, `@staff`."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vatt.errors import InvalidRequest

MAX_ID = (1 << 32) - 2  # the last one means "no such user"


@dataclass(frozen=True, slots=True)
class UsersAndGroups:
    """Ids of users and of groups."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()


def parse_users(texts: Iterable[str]) -> UsersAndGroups:
    """A user by number or name, a group with `@` before it. Raises InvalidRequest with an example."""
    uids, gids = set(), set()
    for text in texts:
        if text.startswith("@"):
            gids.add(_identity(text[1:], text, "group", _gid_of))
        else:
            uids.add(_identity(text, text, "user", _uid_of))
    return UsersAndGroups(frozenset(uids), frozenset(gids))


def format_users(uids: Iterable[int], gids: Iterable[int]) -> str:
    """For people, by name where there is one."""
    return ", ".join([*(_user_name(uid) for uid in sorted(uids)), *(_group_name(gid) for gid in sorted(gids))])


def _uid_of(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid_of(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _identity(name: str, text: str, what: str, find: Callable[[str], int]) -> int:
    if name.isascii() and name.isdigit():
        if int(name) > MAX_ID:
            raise InvalidRequest(f"{text!r}: the id of a {what} is at most {MAX_ID}")
        return int(name)
    try:
        return find(name)
    except (KeyError, ValueError):
        raise InvalidRequest(
            f"there is no {what} {name!r} here: write a user as 1000 or alice, a group as @100 or @staff"
        ) from None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return f"@{grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"@{gid}"
