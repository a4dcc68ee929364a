"""What a tenant may be called."""

from __future__ import annotations

import re

from vatt.errors import InvalidRequest

_TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def check_tenant_name(name: str) -> None:
    """Raises InvalidRequest with what is allowed."""
    if not _TENANT_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a tenant's name: 1 to 63 of a-z, 0-9, '-', '_' and '.', "
            "starting with a letter or a digit"
        )
