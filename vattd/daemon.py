"""The daemon: everything put together, served until it is told to stop, taken apart in reverse."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from vatt.errors import DeviceLost, InvalidRequest, ShuttingDown
from vatt.protocol import MAX_MESSAGE_BYTES
from vatt.sizes import format_size, parse_size_or_percent
from vatt.sockets import Sockets, default_socket_dir
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd.admin import AdminService, DaemonFacts
from vattd.config import DEFAULT_POOL_MAX, Config
from vattd.device_lock import DeviceLock
from vattd.driver_thread import DriverThread
from vattd.handle_server import HandleServer
from vattd.ledger import Ledger
from vattd.metrics import MetricsServer, PoolCollector
from vattd.pool import Pool, PoolLimits
from vattd.service import EngineService
from vattd.sessions import Sessions
from vattd.stock import Stock
from vattention.vmm import default_device, open_physical
from vattention.vmm.driver import PhysicalDriver
from vattention.vmm.limits import raise_nofile_to_hard

log = logging.getLogger(__name__)

EXIT_DEVICE_LOST = 4
EXIT_BUG = 70
# Streams end when their mailboxes close; whoever is still under way then has this long.
STOP_GRACE_S = 1.0


async def serve(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status; raises VattError if it cannot start."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def finish(status: int) -> None:
        if not stop.done():
            stop.set_result(status)

    async with AsyncExitStack() as stack:
        raise_nofile_to_hard()  # a page's descriptor is open only while it travels, but many travel at once
        device = config.device or default_device()
        if config.device is None and device == "host":
            log.info("no GPU that can be used here: vattd takes host memory")
        driver = open_physical(device, config.page_size_bytes)
        stack.callback(driver.close)
        if config.exit_with_parent:  # the directory was made for this vattd alone; its maker may be killed
            stack.callback(shutil.rmtree, config.socket_dir, ignore_errors=True)
        limits = _limits(config, driver)
        sockets = Sockets(config.socket_dir / driver.device.uuid)
        _make_directory(config.socket_dir)
        _make_directory(sockets.directory)
        lock = DeviceLock(_lock_path(driver, sockets), driver.device.uuid)
        stack.callback(lock.release)
        facts = DaemonFacts(lock.incarnation(time.time()), time.time())

        thread = DriverThread()
        stack.callback(thread.close)
        stock = Stock(limits.max_bytes // driver.page_size_bytes, shares_zone=driver.recycles_across_tenants)
        ledger = Ledger(stock, page_size_bytes=driver.page_size_bytes, incarnation=facts.incarnation)

        def broken(error: BaseException) -> None:
            facts.state = "device_lost"
            sessions.tell_all(pb.Notice(kind=pb.Notice.KIND_DEVICE_LOST, message=str(error)))
            finish(EXIT_DEVICE_LOST if isinstance(error, DeviceLost) else EXIT_BUG)

        pool = Pool(ledger, driver, thread, limits, broken)
        sessions = Sessions(pool, facts.incarnation)
        work = loop.create_task(pool.run())
        stack.push_async_callback(_cancel, work)

        for path in (sockets.engine, sockets.admin, sockets.handles):
            path.unlink(missing_ok=True)  # stale: we hold the lock
            stack.callback(path.unlink, missing_ok=True)
        # Any user may knock at the engine's doors, since the handle socket sees who it is; only ours at the admin's.
        with _umask(0o111):
            handle_server = HandleServer(sockets.handles, sessions)
            stack.callback(handle_server.close)
            engine = EngineService(sessions, pool, driver, facts.incarnation)
            await _serve_grpc(
                stack,
                sockets.engine,
                "vatt.v1.EngineService",
                lambda s: vatt_pb2_grpc.add_EngineServiceServicer_to_server(engine, s),
            )
        with _umask(0o177):
            admin = AdminService(facts, sessions, pool, driver, thread)
            await _serve_grpc(
                stack,
                sockets.admin,
                "vatt.v1.AdminService",
                lambda s: vatt_pb2_grpc.add_AdminServiceServicer_to_server(admin, s),
            )
        metrics = "off"
        if config.metrics_address is not None:
            collector = PoolCollector(loop, ledger.snapshot, driver.device)
            server = MetricsServer(config.metrics_address.host, config.metrics_address.port, collector)
            stack.push_async_callback(loop.run_in_executor, None, server.close)
            metrics = f"http://{config.metrics_address.host}:{server.port}/metrics"

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, finish, 0)
        if config.exit_with_parent:
            parent = os.pidfd_open(os.getppid())
            stack.callback(os.close, parent)
            loop.add_reader(parent, finish, 0)
        log.info(
            "vattd serves %s (%s): pages of %s, pool %s to %s, sockets in %s, metrics %s",
            driver.device.uuid,
            driver.device.name,
            format_size(driver.page_size_bytes),
            format_size(limits.min_bytes),
            format_size(limits.max_bytes),
            sockets.directory,
            metrics,
        )
        say_ready(config, {"device": driver.device.uuid, "pid": os.getpid(), "metrics": metrics})

        status = await stop
        if facts.state == "serving":
            facts.state = "shutting_down"
            sessions.tell_all(pb.Notice(kind=pb.Notice.KIND_SHUTTING_DOWN, message="vattd stops; keep what you hold"))
        log.info("vattd stops; engines keep what they hold")
        pool.stop_lending(ShuttingDown("vattd is stopping: what you hold stays yours"))
        sessions.close()
    return status


def say_ready(config: Config, facts: dict[str, object]) -> None:
    """One line of JSON to whoever waits at --ready-fd. If nobody does any more, there is no reason to serve."""
    if config.ready_fd is None:
        return
    line = json.dumps({"socket_dir": str(config.socket_dir), **facts}) + "\n"
    os.write(config.ready_fd, line.encode())
    os.close(config.ready_fd)


def _limits(config: Config, driver: PhysicalDriver) -> PoolLimits:
    """Bytes, rounded down to whole pages. Raises InvalidRequest with the numbers."""
    page, total = driver.page_size_bytes, driver.memory().total_bytes
    max_text = config.pool_max or DEFAULT_POOL_MAX[driver.device.backend]
    max_bytes = parse_size_or_percent(max_text, total) // page * page
    min_bytes = parse_size_or_percent(config.pool_min, total) // page * page
    if max_bytes < page:
        raise InvalidRequest(f"--pool-max {max_text} is less than one page of {format_size(page)}")
    if max_bytes > total:
        raise InvalidRequest(
            f"--pool-max {max_text} is more than the {format_size(total)} that {driver.device.uuid} has: try 90%"
        )
    if min_bytes > max_bytes:
        raise InvalidRequest(f"--pool-min {config.pool_min} is more than --pool-max {max_text}")
    headroom_bytes = min(parse_size_or_percent(config.headroom, total), max_bytes)
    return PoolLimits(min_bytes, max_bytes, headroom_bytes)


def _make_directory(path: Path) -> None:
    """Open to all for root, whose engines may be any user's; else ours alone."""
    path.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)


def _lock_path(driver: PhysicalDriver, sockets: Sockets) -> Path:
    """A GPU has one owner whatever the socket directory; host memory has one a socket directory."""
    if driver.device.backend == "host":
        return sockets.lock
    locks = default_socket_dir({key: value for key, value in os.environ.items() if key == "XDG_RUNTIME_DIR"}) / "locks"
    _make_directory(locks)
    return locks / driver.device.uuid


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """So that a socket never exists with a wider mode than it should."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


async def _serve_grpc(stack: AsyncExitStack, path: Path, service: str, add: Callable[[grpc.aio.Server], None]) -> None:
    """One gRPC server with health and reflection at a Unix socket, stopped by `stack`."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]
    server = grpc.aio.server(options=options)
    add(server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", service):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((service, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE_S)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
