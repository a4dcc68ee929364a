"""`python -m tests.vattctl.bench.short` is `vattctl`, with a bench that takes the fewest rounds that there can be."""

from __future__ import annotations

from unittest.mock import patch

from vattctl.bench.plan import Part
from vattctl.main import main

if __name__ == "__main__":
    with patch("vattctl.bench.command.QUICK_S", dict.fromkeys(Part, 0.0)):
        main()
