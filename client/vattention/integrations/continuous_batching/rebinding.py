"""Names of a library's module that mean something else for a while, where it has no switch for what they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import transformers

from vatt.errors import InvalidRequest


@contextmanager
def rebound(module: ModuleType, **values: Any) -> Iterator[None]:
    """Rebind names of a module of transformers'. Raises InvalidRequest, and rebinds none, if one is not there."""
    for name in values:
        if name not in vars(module):
            raise InvalidRequest(
                f"transformers {transformers.__version__} has no `{name}` in {module.__name__}: its continuous "
                "batching cannot run on leased pages"
            )
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)
