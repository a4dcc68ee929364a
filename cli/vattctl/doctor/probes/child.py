"""Asking a driver in a process of its own: one that hangs, or ends who asks, takes nothing of ours with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from vattctl.doctor.facts import Answer

# A driver that sets up eight GPUs anew takes some seconds; one that hangs, for ever.
WITHIN_S = 20.0


class Child:
    """`python -m MODULE WHAT`, whose last line is JSON. Begun at once; `wait` is for the answer."""

    def __init__(self, module: str, what: str, within_s: float = WITHIN_S) -> None:
        self._within_s = within_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, what],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> tuple[Answer, dict[str, Any]]:
        """Its answer, and what it said; if it said nothing, why, as `error`."""
        try:
            printed, complaints = self._process.communicate(timeout=self._within_s)
        except subprocess.TimeoutExpired:
            self._give_up()
            return Answer.NONE, {"error": f"no answer within {self._within_s:g} s"}
        if self._process.returncode:
            last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
            return Answer.CRASH, {"error": last or _end_words(self._process.returncode)}
        try:
            said: dict[str, Any] = json.loads(printed.splitlines()[-1])
            return Answer(said.pop("answer")), said
        except (IndexError, ValueError, KeyError):
            return Answer.CRASH, {"error": f"it said {printed[-80:]!r}"}

    def _give_up(self) -> None:
        """Who hangs inside of the kernel cannot even be killed: it is not waited for."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.returncode = self._process.returncode or -signal.SIGKILL


def _end_words(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
