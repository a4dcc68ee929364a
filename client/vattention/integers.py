"""Integers as callers hand them over."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

from vatt.errors import InvalidRequest


def as_integer(value: Any, what: str) -> int:
    """`value` as a plain int; numpy's integers are as good. Raises InvalidRequest for anything else, a bool too."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
    raise InvalidRequest(f"{what} must be an integer, not {value!r}")
