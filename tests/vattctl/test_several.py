"""Several vattds on one machine: shown together, changed one at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cudasim import World
from tests.daemon import Vattd, run_command
from tests.vattctl.command import refused, vattctl
from vatt.errors import DaemonUnreachable, InvalidRequest
from vatt.sockets import find_daemon, find_daemons, find_only_daemon

POOL = ["--pool-max", "64MiB"]


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Vattd, dict[str, str], list[str]]]:
    """Two simulated GPUs, a vattd each, in one socket directory."""
    with World(devices=2) as world, Vattd(*POOL, device="0", env=world.env()) as first:
        with Vattd(*POOL, "--socket-dir", str(first.socket_dir), device="1", env=world.env()):
            yield first, world.env(), [f"GPU-{uuid}" for uuid in world.uuids]


def test_all_are_shown_together_and_gpu_narrows(two: tuple[Vattd, dict[str, str], list[str]]) -> None:
    vattd, env, uuids = two
    assert find_daemons([vattd.socket_dir])
    for verb in ("status", "tenants"):
        table = vattctl(vattd, verb).stdout
        assert all(uuid in table for uuid in uuids), table
        every = json.loads(vattctl(vattd, verb, "-o", "json").stdout)
        assert every.keys() == {"daemons", "unreachable"}
        assert sorted(one["device"]["uuid"] for one in every["daemons"]) == sorted(uuids)
        [one] = json.loads(vattctl(vattd, verb, "--gpu", "1", "-o", "json", env=env).stdout)["daemons"]
        assert one["device"]["uuid"] == uuids[1]


def test_who_changes_something_must_say_where(two: tuple[Vattd, dict[str, str], list[str]]) -> None:
    vattd, env, uuids = two
    for command in (
        ["reserve", "chat", "--min", "8MiB"],
        ["unreserve", "chat"],
        ["drain"],
        ["shrink"],
        ["evict", "1-1"],
    ):
        said = refused(vattd, *command)
        assert "several vattd run here" in said
        assert all(uuid in said for uuid in uuids)
        assert "--gpu" in said
    stopped = run_command(["vattd", "stop", "--socket-dir", str(vattd.socket_dir)])
    assert stopped.returncode == 1
    assert "several vattd run here" in stopped.stderr
    result = vattctl(vattd, "reserve", "chat", "--min", "50%", "--gpu", uuids[1])
    assert result.returncode == 0, result.stderr
    by_device = {
        one["device"]["uuid"]: [tenant["name"] for tenant in one["tenants"]]
        for one in json.loads(vattctl(vattd, "tenants", "-o", "json").stdout)["daemons"]
    }
    assert by_device == {uuids[0]: [], uuids[1]: ["chat"]}
    assert vattctl(vattd, "unreserve", "chat", "--gpu", "1", env=env).returncode == 0


def test_one_that_does_not_answer_is_named_and_hides_no_other() -> None:
    with Vattd(*POOL) as vattd:
        dead = vattd.socket_dir / "GPU-dead"
        dead.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(dead / "engine.sock"))
        for verb in ("status", "tenants"):
            result = vattctl(vattd, verb)
            assert result.returncode == 0, result.stderr
            assert "GPU-dead: no vattd answers at" in result.stdout
            answer = json.loads(vattctl(vattd, verb, "-o", "json").stdout)
            assert [one["device"]["uuid"] for one in answer["daemons"]] == ["host"]
            [lost] = answer["unreachable"]
            assert lost["device"] == "GPU-dead"
            assert "`vattd start --gpu GPU-dead" in lost["error"]
        assert vattctl(vattd, "shrink").returncode == 0, "what the killed left behind is no choice"
        vattd.stop(signal.SIGKILL)
        result = vattctl(vattd, "status", "-o", "json")
        assert result.returncode == 3
        assert sorted(one["device"] for one in json.loads(result.stdout)["unreachable"]) == ["GPU-dead", "host"]


def test_one_that_hangs_is_not_waited_for_for_ever() -> None:
    with Vattd(*POOL) as vattd:
        os.kill(vattd.pid, signal.SIGSTOP)
        try:
            said = refused(vattd, "status", status=3)
            stop = run_command(["vattd", "stop", "--socket-dir", str(vattd.socket_dir)])
        finally:
            os.kill(vattd.pid, signal.SIGCONT)
        assert stop.returncode == 1
        assert f"kill -CONT {vattd.pid}" in stop.stderr
        assert vattd.status().daemon.state == "serving", "no signal waited for it"
        assert "does not answer within 5 s" in said
        assert "vattd stop --gpu host" in said


def test_where_there_is_none_the_json_has_its_shape_too(tmp_path: Path) -> None:
    result = run_command(["vattctl", "status", "-o", "json", "--socket-dir", str(tmp_path)])
    assert result.returncode == 3
    assert json.loads(result.stdout) == {"daemons": [], "unreachable": []}
    assert f"`vattd start --socket-dir {tmp_path}`" in result.stderr


def test_a_directory_that_another_user_may_have_filled_is_passed_over(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(InvalidRequest, match="no safe place"):
        find_daemons([tmp_path])
    with Vattd(*POOL) as vattd:
        assert find_daemons([tmp_path, vattd.socket_dir]) == [vattd.sockets]


def test_in_two_directories_an_engine_takes_the_first_and_an_operator_must_choose() -> None:
    with Vattd(*POOL) as ours, Vattd(*POOL) as the_systems:
        directories = [ours.socket_dir, the_systems.socket_dir]
        assert [sockets.device for sockets in find_daemons(directories)] == ["host", "host"]
        assert find_daemon(directories, None) == find_daemon(directories, "host") == ours.sockets
        with pytest.raises(InvalidRequest, match=r"several vattd run here .*say which with --socket-dir"):
            find_only_daemon(directories, "host")
        ours.stop(signal.SIGKILL)
        assert ours.sockets.engine.exists(), "nobody was there to remove it"
        assert find_daemon(directories, None) == find_only_daemon(directories, None) == the_systems.sockets
        with pytest.raises(DaemonUnreachable, match="vattd start --gpu GPU-none"):
            find_daemon(directories, "GPU-none")
