"""The daemon: everything put together, served until it is told to stop, taken apart in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from contextlib import AsyncExitStack, ExitStack, suppress

from vatt.errors import DeviceLost, InvalidRequest, MpsRefused, ShuttingDown
from vatt.protocol import MAX_VERSION, MIN_VERSION
from vatt.sizes import format_size
from vatt.sockets import Sockets, make_directory, make_private_directory
from vatt.v1 import vatt_pb2 as pb
from vattd import __version__
from vattd.admin import AdminService, guarantee_of
from vattd.audit import AuditLog
from vattd.conditions import Conditions
from vattd.config import Config
from vattd.device_lock import DeviceLock
from vattd.doorkeeper import keep_door
from vattd.doors import serve_sockets
from vattd.driver_thread import DriverThread
from vattd.handle_server import HandleServer
from vattd.happenings import Kind
from vattd.journal import Journal, JournalFacts
from vattd.ledger import Ledger
from vattd.limits import limits_of, page_size_bytes_of, with_room_for
from vattd.messages import device_message
from vattd.metrics import Metrics
from vattd.metrics_reading import Readings
from vattd.metrics_server import MetricsServer
from vattd.page_maps import PageMaps
from vattd.page_notes import JournalNotes
from vattd.pool import Pool
from vattd.predecessor import pages_in_use, replace_running
from vattd.rates import OF_USER, Rates
from vattd.ready import ReadyPipe
from vattd.recovery import Recovery, survivors_of
from vattd.reservation import Reservation
from vattd.rpc_calls import RpcCalls
from vattd.scrub import Scrub
from vattd.service import EngineService
from vattd.sessions import Sessions
from vattd.site import Pages
from vattd.state_file import StateFile
from vattd.status import DaemonFacts, DaemonState, Status
from vattd.status_feed import StatusFeed
from vattd.status_page import pages_of
from vattd.status_reader import StatusReader
from vattd.stock import Stock
from vattd.tenant_book import TenantBook, read_state
from vattd.tenant_config import read_tenants
from vattention.vmm import default_device, open_physical
from vattention.vmm.driver import PhysicalDriver
from vattention.vmm.limits import raise_nofile_to_hard

log = logging.getLogger(__name__)

EXIT_DEVICE_LOST = 4
EXIT_BUG = 70
# At least so often it is looked whether a reservation's time is over: the wall clock may be set.
LOOK_AT_RESERVATIONS_S = 1.0
LOOK_AT_CONDITIONS_S = 1.0


async def serve(config: Config, ready: ReadyPipe) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status; raises VattError if it cannot start."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def finish(status: int) -> None:
        if not stop.done():
            stop.set_result(status)

    async with AsyncExitStack() as stack:
        driver, sockets, facts = _take_device(config, stack)
        thread = DriverThread()
        stack.callback(thread.close)
        journal = Journal(sockets.journal, JournalFacts(driver.device.uuid, driver.page_size_bytes))
        stack.callback(journal.close)
        in_use_bytes = pages_in_use(journal.entries) * driver.page_size_bytes
        limits = with_room_for(in_use_bytes, limits_of(config, driver), config)
        stock = Stock(
            limits.max_bytes // driver.page_size_bytes,
            shares_zone=driver.recycles_across_tenants and not config.isolate,
            scrub=config.scrub,
            first_zone=journal.next_zone,
        )
        journal.use_zone(stock.first_zone)
        ledger = Ledger(stock, page_size_bytes=driver.page_size_bytes, incarnation=facts.incarnation)

        def broken(error: BaseException) -> None:
            facts.state = DaemonState.DEVICE_LOST if isinstance(error, DeviceLost) else DaemonState.BROKEN
            sessions.tell_all(_last_notice(error))
            finish(EXIT_DEVICE_LOST if isinstance(error, DeviceLost) else EXIT_BUG)

        pool = Pool(ledger, driver, thread, limits, broken, config.rules, JournalNotes(journal, ledger, driver))
        recovery = Recovery(pool, driver, thread, journal, loop.time() + config.recovery_grace_s)
        stack.push_async_callback(recovery.close)
        survivors = survivors_of(journal.entries, journal)
        recovery.restore(journal.entries, survivors)
        greeting = pb.HandleWelcome(
            incarnation=facts.incarnation,
            min_protocol_version=MIN_VERSION,
            max_protocol_version=MAX_VERSION,
            device=device_message(driver.device),
        )
        sessions = Sessions(
            pool,
            greeting,
            lambda tenant: guarantee_of(book, tenant),
            journal,
            recovery,
            allow_mps=config.allow_mps,
        )
        pool.engines = sessions
        book = _open_book(config, stack, driver, pool, sessions)
        audit = AuditLog(config.state_dir / f"{driver.device.uuid}.audit.jsonl")
        stack.push_async_callback(_cancel, loop.create_task(pool.run()))
        stack.push_async_callback(_cancel, loop.create_task(_end_reservations(book)))
        stack.push_async_callback(_cancel, loop.create_task(_look(Conditions(pool, recovery))))
        users = Rates(OF_USER)
        engine = EngineService(sessions, pool, driver, facts.incarnation, users)
        status = Status(facts, sessions, pool, driver.device, book, recovery)
        maps = PageMaps(ledger)
        admin = AdminService(status, sessions, pool, book, audit, maps)
        for survivor in survivors:
            sessions.restore(survivor)
        pool.happenings.note(Kind.VATTD_STARTED, message=f"vattd {__version__}, pid {os.getpid()}")
        stack.push_async_callback(_cancel, loop.create_task(keep_door(sockets.engine)))
        rpc_calls = RpcCalls()
        await serve_sockets(stack, sockets, HandleServer(sessions, users), engine, admin, rpc_calls)
        readings = Readings(driver.device, pool, sessions, recovery, thread.calls, rpc_calls)
        reader = StatusReader(status, pool, maps)
        pages = pages_of(StatusFeed(loop, status, reader.read))
        metrics = _serve_metrics(stack, config, Metrics(loop, readings), pages)
        if config.metrics_address is not None:
            stack.push_async_callback(_cancel, loop.create_task(reader.keep_sampling()))

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
        if config.scrub is Scrub.NEVER and not driver.fresh_is_zero:
            log.warning("--scrub never: tenants may read what others left in their pages, and what was there before")
        if config.allow_mps and driver.device.backend == "cuda":
            log.warning("--allow-mps: the end of an engine behind an MPS server does not prove that its kernels ended")
        where = {"socket_dir": str(config.socket_dir), "device": driver.device.uuid}
        ready.say({**where, "pid": os.getpid(), "metrics": metrics})

        ending = await stop
        if facts.state is DaemonState.SERVING:
            facts.state = DaemonState.SHUTTING_DOWN
            sessions.tell_all(pb.Notice(kind=pb.Notice.KIND_SHUTTING_DOWN, message="vattd stops; keep what you hold"))
        log.info("vattd stops; engines keep what they hold")
        pool.stop_lending(ShuttingDown("vattd is stopping: what you hold stays yours"))
        sessions.close()
        admin.close()
    return ending


def _last_notice(error: BaseException) -> pb.Notice:
    """What engines are told by a vattd that cannot go on: for a bug of its own, nobody need leave the device."""
    if isinstance(error, DeviceLost):
        return pb.Notice(kind=pb.Notice.KIND_DEVICE_LOST, message=str(error))
    message = f"vattd is broken and stops; keep what you hold: {error}"
    return pb.Notice(kind=pb.Notice.KIND_SHUTTING_DOWN, message=message)


def _take_device(config: Config, stack: AsyncExitStack) -> tuple[PhysicalDriver, Sockets, DaemonFacts]:
    """The driver, and the place of its sockets, locked and empty. Raises VattError."""
    raise_nofile_to_hard()  # a page's descriptor is open only while it travels, but many travel at once
    device = config.device or default_device()
    if config.device is None and device == "host":
        log.info("no GPU that can be used here: vattd takes host memory")
    with ExitStack() as undo:
        driver = open_physical(device, page_size_bytes_of(config, device), huge_pages=config.huge_pages)
        undo.callback(driver.close)
        if driver.device.uses_mps and not config.allow_mps:
            raise MpsRefused(
                f"vattd itself reaches {driver.device.uuid} through an MPS server, where an engine's fault can be its "
                "end: run it with CUDA_MPS_PIPE_DIRECTORY set to an empty directory, or with --allow-mps"
            )
        sockets = Sockets(config.socket_dir / driver.device.uuid)
        for directory in (config.socket_dir, sockets.directory):
            make_directory(directory)
        if config.replace:
            max_bytes = limits_of(config, driver).max_bytes
            _check_start(config, driver, max_bytes)
            replace_running(sockets, JournalFacts(driver.device.uuid, driver.page_size_bytes), max_bytes)
        lock = DeviceLock(sockets.lock, driver.device)
        undo.pop_all()
    # In this order: who has the lock next must find the device's memory free.
    stack.callback(lock.release)
    stack.callback(driver.close)
    if config.exit_with_parent:  # the directory was made for this vattd alone; its maker may be killed
        stack.callback(shutil.rmtree, config.socket_dir, ignore_errors=True)
    for path in (sockets.engine, sockets.admin, sockets.handles):
        path.unlink(missing_ok=True)  # stale: we hold the lock
        stack.callback(path.unlink, missing_ok=True)
    now_s = time.time()
    return driver, sockets, DaemonFacts(lock.incarnation(now_s), now_s)


def _check_start(config: Config, driver: PhysicalDriver, pool_bytes: int) -> None:
    """What could keep this vattd from starting, and can be known while another one runs. Raises VattError."""
    config.metrics_access.check_files()
    make_private_directory(config.state_dir)
    configured = _configured(config, driver, pool_bytes)
    read_state(_state_file(config, driver), configured, driver.page_size_bytes, pool_bytes, time.time())


def _state_file(config: Config, driver: PhysicalDriver) -> StateFile:
    return StateFile(config.state_dir / f"{driver.device.uuid}.tenants.json")


def _configured(config: Config, driver: PhysicalDriver, pool_bytes: int) -> dict[str, Reservation]:
    if config.tenants_path is None:
        return {}
    return read_tenants(config.tenants_path, pool_bytes, driver.page_size_bytes, os.geteuid())


def _open_book(
    config: Config, stack: AsyncExitStack, driver: PhysicalDriver, pool: Pool, sessions: Sessions
) -> TenantBook:
    """Reservations and configured tenants, in force. Raises InvalidRequest, Overcommitted."""
    make_private_directory(config.state_dir)
    configured = _configured(config, driver, pool.ledger.stock.max_pages * driver.page_size_bytes)
    state_file = _state_file(config, driver)
    stack.enter_context(state_file.held())
    return TenantBook(pool, state_file, configured, os.geteuid(), sessions.tell_tenant, time.time())


async def _end_reservations(book: TenantBook) -> None:
    """Have reservations with a limited time end when it is over."""
    while True:
        end_s = book.next_end_s()
        left_s = LOOK_AT_RESERVATIONS_S if end_s is None else end_s - time.time()
        await asyncio.sleep(min(max(0.01, left_s), LOOK_AT_RESERVATIONS_S))
        try:
            await book.expire(time.time())
        except Exception:  # the next ones are to end all the same
            log.exception("reservations whose time is over could not be ended")


async def _look(conditions: Conditions) -> None:
    while True:
        try:
            conditions.look(asyncio.get_running_loop().time())
        except Exception:  # what is not told this time may be the next
            log.exception("conditions could not be looked at")
        await asyncio.sleep(LOOK_AT_CONDITIONS_S)


def _serve_metrics(stack: AsyncExitStack, config: Config, metrics: Metrics, pages: Pages) -> str:
    """Where it serves, or "off"."""
    if config.metrics_address is None:
        return "off"
    try:
        server = MetricsServer(config.metrics_address, config.metrics_access, metrics.text, pages)
    except InvalidRequest as error:
        if not config.replace:
            raise
        log.error("%s", error)  # engines have no other vattd any more
        return f"off ({error})"
    stack.push_async_callback(asyncio.get_running_loop().run_in_executor, None, server.close)
    return server.url


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
