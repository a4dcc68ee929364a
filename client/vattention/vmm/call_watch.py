"""A look at each call into libcuda and the kernel that the drivers make, for measurements. Nobody looks otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Wraps a call's function, by the call's name.
Watch = Callable[[str, Callable[..., Any]], Callable[..., Any]]

current: Watch | None = None


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Every call of this process goes through `watch` meanwhile, whichever thread makes it. One at a time."""
    global current
    if current is not None:
        raise RuntimeError("somebody looks at the drivers' calls already")
    current = watch
    try:
        yield
    finally:
        current = None
