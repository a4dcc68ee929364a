"""Starting vLLM engines from tests."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.vllm.engine_process import Report, Spec

TIMEOUT_S = 600.0
# Quiet, offline, and in one process unless a test is about several.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
}
STOCK = {"VATTD_VLLM": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}


def lent(socket_dir: Path, tenant: str = "vllm") -> dict[str, str]:
    """The environment of an engine whose memory is vattd's."""
    return {"VATTD_VLLM": "1", "VATTD_SOCKET_DIR": str(socket_dir), "VATTENTION_TENANT": tenant}


class EngineProcess:
    """An engine at work in a process of its own; killed at the end if it is still there."""

    def __init__(self, spec: Spec, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.vllm.engine_process", json.dumps(dataclasses.asdict(spec))],
            env={**os.environ, **ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, said: str) -> None:
        """Until it has STARTED and takes requests, or is IDLE and has answered them all."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == said:
                return
        raise AssertionError(f"the engine ended before: {self._process.communicate(timeout=TIMEOUT_S)[1]}")

    def report(self) -> Report:
        output, errors = self._process.communicate(timeout=TIMEOUT_S)
        if self._process.returncode:
            raise AssertionError(f"the engine ended with {self._process.returncode}: {errors}")
        return Report(**json.loads(output.splitlines()[-1]))

    def failure(self) -> str:
        """What it said when it refused to start."""
        _, errors = self._process.communicate(timeout=TIMEOUT_S)
        assert self._process.returncode != 0, "it was to fail"
        return errors

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()
        self._process.communicate()


def run_engine(spec: Spec, environment: Mapping[str, str]) -> Report:
    with EngineProcess(spec, environment) as engine:
        return engine.report()
