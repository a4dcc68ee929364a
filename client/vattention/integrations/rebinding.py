"""Names of a library's module that mean something else for a while, where it has no switch for what they name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from vatt.errors import InvalidRequest


@contextmanager
def rebound(module: ModuleType, **values: Any) -> Iterator[None]:
    """Rebind names of an engine's module. Raises InvalidRequest, and rebinds none, if one is not there."""
    for name in values:
        if name not in vars(module):
            engine = module.__name__.partition(".")[0]
            version = getattr(sys.modules.get(engine), "__version__", "of this version")
            raise InvalidRequest(
                f"{engine} {version} has no `{name}` in {module.__name__}: this part of it cannot run on leased pages"
            )
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)
