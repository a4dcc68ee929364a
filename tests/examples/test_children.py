"""Child processes end with the demo, whatever it or they do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from examples import children
from examples.children import Daemon, EngineProcess, child, daemon, output_of
from examples.errors import ChildFailed, DemoFailed
from examples.messages import Finished, Progress, encode

# Says that it is ready, and then minds no SIGTERM.
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
ECHO = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_an_engine_hears_and_answers_in_order(tmp_path: Path) -> None:
    async def work() -> None:
        async with child([sys.executable, "-c", ECHO], tmp_path / "log") as process:
            engine = EngineProcess("chat", process, tmp_path / "log")
            engine.tell(Progress(1))
            engine.tell(Finished())
            assert [await engine.hear(), await engine.hear()] == [Progress(1), Finished()]

    run(work())


def test_a_child_is_ended_when_the_demo_fails(tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(DemoFailed, match="trouble"):
            async with child([sys.executable, "-c", ECHO], tmp_path / "log") as process:
                raise DemoFailed("trouble")
        assert process.returncode == -15

    run(work())


def test_an_engine_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    dying = f"import sys; print({encode(Progress(1)).strip()!r}); sys.exit('out of ink')"

    async def work() -> None:
        async with child([sys.executable, "-c", dying], tmp_path / "log") as process:
            engine = EngineProcess("chat", process, tmp_path / "log")
            assert await engine.hear() == Progress(1)
            with pytest.raises(ChildFailed, match=r"engine of chat ended with status 1(?s:.*)out of ink"):
                await engine.hear()

    run(work())


def test_a_child_that_minds_no_sigterm_is_killed_at_once_when_the_wait_for_it_is_cut_short(tmp_path: Path) -> None:
    async def work() -> None:
        running: asyncio.Future[asyncio.subprocess.Process] = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            async with child([sys.executable, "-c", STUBBORN], tmp_path / "log") as process:
                assert process.stdout is not None
                await process.stdout.readline()
                running.set_result(process)

        holding = asyncio.create_task(hold())
        process = await running  # and `hold` waits for its end
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert process.returncode == -9

    run(work())


def test_a_vattd_that_does_not_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "END_WITHIN_S", 0.1)

    async def work() -> None:
        async with child([sys.executable, "-c", STUBBORN], tmp_path / "log") as process:
            assert process.stdout is not None
            await process.stdout.readline()
            with pytest.raises(ChildFailed, match="vattd did not end within"):
                await Daemon(process, tmp_path / "log", tmp_path, "host").stop()

    run(work())


def test_a_vattd_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START_WITHIN_S", 0.0)

    async def work() -> None:
        with pytest.raises(ChildFailed, match="vattd did not start within"):
            async with daemon(tmp_path, ["--gpu", "host", "--pool-max", "8MiB"]):
                pass

    run(work())


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(DemoFailed, match="status 3"):
        run(_output_of_failing())


async def _output_of_failing() -> None:
    await output_of([sys.executable, "-c", "raise SystemExit(3)"])
