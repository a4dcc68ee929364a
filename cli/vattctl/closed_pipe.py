"""What becomes of output that nobody reads any more: `vattctl status | head -1`."""

from __future__ import annotations

import io
import os
import sys


class _UntilClosed(io.FileIO):
    """Ends the command, quietly and as done, when its reader is gone: the reader has had what it wanted.

    click and rich would both exit with 1, which says that vattd refused something.
    """

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # what is left in the buffer is written at exit
            os.close(nowhere)
            raise SystemExit(0) from None


def end_when_stdout_closes() -> None:
    """Also, a character that the terminal's encoding lacks becomes a question mark, not an error."""
    if sys.stdout is None:  # the shell closed it: >&-
        return
    raw = _UntilClosed(sys.stdout.fileno(), "w", closefd=False)
    encoding, is_terminal = sys.stdout.encoding, sys.stdout.isatty()
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "replace", line_buffering=is_terminal)
