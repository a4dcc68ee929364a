"""Memory crosses processes, is accounted across them, and lives exactly as long as somebody holds it."""

import signal
import socket
import uuid

import pytest

from .processes import Guest, run
from .world import MIB, World

PAGE = 2 * MIB

# Creates a page, writes to it, and sends its fd through the inherited socket.
EXPORTER = """
ok(cu.cuInit(0))
h = create()
address = attach(reserve(PAGE), h)
ctypes.memmove(address, b"from the exporter", 17)
connection = inherited_socket()
fd = export(h)
send_fd(connection, fd)
os.close(fd)
"""
# Ends without an exit handler: all that it holds is left to the kernel.
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def test_data_written_by_one_process_is_read_by_another(world: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        ours,
        theirs,
        Guest(world, EXPORTER + "say('sent'); hear(); say(ctypes.string_at(address, 5))", ours) as exporter,
    ):
        assert exporter.hear() == "sent"
        importer = """
        ok(cu.cuInit(0))
        fd = receive_fd(inherited_socket())
        h = ok(cu.cuMemImportFromShareableHandle(fd, FD))
        os.close(fd)
        address = attach(reserve(PAGE), h)
        say(ctypes.string_at(address, 17))
        ctypes.memmove(address, b"reply", 5)
        say("written")
        hear()
        """
        with Guest(world, importer, theirs) as guest:
            assert guest.hear() == "b'from the exporter'"
            assert guest.hear() == "written"
            exporter.say()
            assert exporter.hear() == "b'reply'"
            assert world.allocation_count() == 1
    assert world.allocation_count() == 0


def test_an_import_outlives_the_exporter(world: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    importer = """
    ok(cu.cuInit(0))
    h = ok(cu.cuMemImportFromShareableHandle(receive_fd(inherited_socket()), FD))
    say("imported")
    hear()
    say(ctypes.string_at(attach(reserve(PAGE), h), 17))
    """
    with ours, theirs, Guest(world, importer, theirs) as guest:
        assert run_with(world, EXPORTER + DIE, ours) == -signal.SIGKILL
        assert guest.hear() == "imported"
        assert world.used_bytes() == PAGE
        guest.say()
        assert guest.hear() == "b'from the exporter'"
        assert guest.finish() == 0
    assert world.used_bytes() == 0


def test_an_fd_nobody_has_read_pins_the_memory_until_its_socket_closes(world: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert run_with(world, EXPORTER + DIE, ours) == -signal.SIGKILL
        assert (world.allocation_count(), world.used_bytes()) == (1, PAGE)
    assert (world.allocation_count(), world.used_bytes()) == (0, 0)


def test_a_leaked_fd_pins_the_memory_until_it_is_closed(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create()
    first, second = export(h), export(h)
    copy = os.dup(first)
    ok(cu.cuMemRelease(h))
    for fd in (first, second, copy):
        hear()
        os.close(fd)
        say("closed")
    hear()
    """
    with Guest(world, snippet) as guest:
        for held in (PAGE, PAGE, 0):
            guest.say()
            assert guest.hear() == "closed"
            assert world.used_bytes() == held


def test_a_released_but_mapped_handle_keeps_its_memory_until_the_last_unmap(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create()
    one, other = attach(reserve(PAGE), h), attach(reserve(PAGE), h)
    ok(cu.cuMemRelease(h))
    for address in (one, other):
        ctypes.memset(address, 1, PAGE)
        hear()
        ok(cu.cuMemUnmap(address, PAGE))
        say("unmapped")
    hear()
    """
    with Guest(world, snippet) as guest:
        for held in (PAGE, 0):
            guest.say()
            assert guest.hear() == "unmapped"
            assert world.used_bytes() == held


def test_every_reference_must_be_released(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create()
    fd = export(h)
    imported = ok(cu.cuMemImportFromShareableHandle(fd, FD))
    os.close(fd)
    address = attach(reserve(PAGE), h)
    retained = ok(cu.cuMemRetainAllocationHandle(address + 5))
    assert int(retained) == h != int(imported)
    ok(cu.cuMemUnmap(address, PAGE))
    for handle in (h, imported, retained):
        hear()
        ok(cu.cuMemRelease(handle))
        say("released")
    hear()
    """
    with Guest(world, snippet) as guest:
        for held in (PAGE, PAGE, 0):
            guest.say()
            assert guest.hear() == "released"
            assert world.used_bytes() == held


def test_a_released_handle_that_is_mapped_can_be_retained_again(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create()
    address = attach(reserve(PAGE), h)
    ok(cu.cuMemRelease(h))
    assert int(ok(cu.cuMemRetainAllocationHandle(address))) == h
    ok(cu.cuMemUnmap(address, PAGE))
    attach(address, h)
    """
    assert run(world, snippet).lines == []


@pytest.mark.parametrize("visible", ["1", "GPU-22222222"])
def test_memory_of_an_invisible_device_cannot_be_imported(visible: str) -> None:
    with World(devices=2, uuids=[uuid.UUID("1" * 32), uuid.UUID("2" * 32)]) as world:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        importer = f"""
        os.environ["CUDA_VISIBLE_DEVICES"] = "{visible}"
        ok(cu.cuInit(0))
        say(ok(cu.cuDeviceGetCount()))
        say(ok(cu.cuDeviceGetUuid(0)).bytes == b"\\x22" * 16)
        say(code(cu.cuMemImportFromShareableHandle(receive_fd(inherited_socket()), FD)))
        """
        with ours, theirs:
            assert run_with(world, EXPORTER + DIE, ours) == -signal.SIGKILL
            with Guest(world, importer, theirs) as guest:
                assert [guest.hear() for _ in range(3)] == ["1", "True", "801"]


def run_with(world: World, snippet: str, connection: socket.socket) -> int:
    """Run to the end with a socket; the exit status."""
    with Guest(world, snippet, connection) as guest:
        return guest.finish()
