"""The demo's child processes. Each is ended by its own pid, whatever happens to the demo."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from examples.errors import ChildFailed, DemoFailed
from examples.messages import Message, decode, encode
from examples.smollm2 import OFFLINE

START_WITHIN_S = 60.0
END_WITHIN_S = 15.0
# An engine reports a few times a second, but reads its prompts in one go.
HEAR_WITHIN_S = 300.0
MAX_LINE_BYTES = 1 << 20


@asynccontextmanager
async def child(
    command: Sequence[str], log: Path, *, pass_fds: Sequence[int] = (), env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with pipes for stdin and stdout, and its stderr in `log`; ended on the way out if it still runs.

    It has a session of its own, so that Ctrl-C reaches the demo only, and the demo ends it in good order.
    """
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            pass_fds=pass_fds,
            env=env,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM; then SIGKILL, after a while or at once if the wait is cut short."""
    if process.returncode is not None:
        return
    try:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), END_WITHIN_S)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), END_WITHIN_S)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running vattd of our own."""

    process: asyncio.subprocess.Process
    log: Path
    socket_dir: Path
    device: str  # "host", or the GPU's UUID

    async def stop(self) -> None:
        """As an operator would: SIGTERM. Raises ChildFailed if it does not end, or not well."""
        with suppress(ProcessLookupError):  # it has just ended: its status says how
            self.process.terminate()
        try:
            status = await asyncio.wait_for(self.process.wait(), END_WITHIN_S)
        except asyncio.TimeoutError:
            raise ChildFailed("vattd", f"did not end within {END_WITHIN_S:.0f} s of SIGTERM", self.log) from None
        if status != 0:
            raise ChildFailed("vattd", f"ended with status {status}", self.log)


@asynccontextmanager
async def daemon(directory: Path, options: Sequence[str]) -> AsyncIterator[Daemon]:
    """vattd with its sockets in `directory`, from the moment it serves. Raises ChildFailed if it never does."""
    log = directory / "vattd.log"
    command = [sys.executable, "-m", "vattd", "start", "--socket-dir", str(directory), "--metrics-address", "off"]
    with _pipe() as (ready, ready_end):
        command += [*options, "--ready-fd", str(ready_end.fileno()), "--exit-with-parent"]
        async with child(command, log, pass_fds=[ready_end.fileno()]) as process:
            ready_end.close()
            try:
                line = await asyncio.wait_for(asyncio.to_thread(ready.readline), START_WITHIN_S)
            except asyncio.TimeoutError:
                raise ChildFailed("vattd", f"did not start within {START_WITHIN_S:.0f} s", log) from None
            facts = json.loads(line) if line else {"error": "it wrote nothing"}
            if "error" in facts:
                raise ChildFailed("vattd", f"did not start: {facts['error']}", log)
            yield Daemon(process, log, directory, facts["device"])


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb") as read_end, open(write_fd, "wb") as write_end:
        yield read_end, write_end


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine; messages go in and out in order."""

    tenant: str
    process: asyncio.subprocess.Process
    log: Path

    def tell(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(encode(message).encode())

    async def hear(self) -> Message:
        """The next message. Raises ChildFailed if the engine ends instead, or says nothing for long."""
        assert self.process.stdout is not None
        name = f"the engine of {self.tenant}"
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), HEAR_WITHIN_S)
        except asyncio.TimeoutError:
            raise ChildFailed(name, f"said nothing for {HEAR_WITHIN_S:.0f} s", self.log) from None
        if not line:
            raise ChildFailed(name, f"ended with status {await self.process.wait()}", self.log)
        return decode(line)


@asynccontextmanager
async def engine(tenant: str, directory: Path, options: Sequence[str]) -> AsyncIterator[EngineProcess]:
    """An engine of `tenant` that uses the vattd in `directory`."""
    log = directory / f"{tenant}.log"
    command = [sys.executable, "-m", "examples.engine", "--tenant", tenant, "--socket-dir", str(directory), *options]
    async with child(command, log, env={**os.environ, **OFFLINE}) as process:
        yield EngineProcess(tenant, process, log)


async def output_of(command: Sequence[str]) -> str:
    """What a command prints. Raises DemoFailed if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise DemoFailed(f"{' '.join(command)} ended with status {process.returncode}")
    return output.decode()
