"""`vattctl status` as operators and scripts see it."""

from __future__ import annotations

import json
import socket

from tests.daemon import Vattd, run_command
from tests.raw_engine import RawEngine


def test_the_table_shows_device_pool_and_sessions() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat", client_name="tester/1") as engine:
        engine.lease(32)
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)])
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        [session] = [line for line in lines if "tester/1" in line]
        assert session.split()[:4] == [
            engine.key.session_id,
            "chat",
            str(engine.key.session_id.split("-")[0]),
            "attached",
        ]
        assert "2.00 MiB" in session
        assert any(line.split()[:2] == ["leased", "32"] for line in lines)
        assert "\x1b" not in result.stdout, "no colours where nobody watches"
        engine.detach()


def test_json_has_the_protos_names_and_raw_numbers() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(32)
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir), "-o", "json"])
        answer = json.loads(result.stdout)
        assert answer["pool"]["max_bytes"] == 64 << 20
        [session] = answer["sessions"]
        assert session["leased_bytes"] == 2 << 20
        assert session["mapped_bytes"] == 0, "every field is there, zeros too"
        assert {row["state"] for row in answer["pool"]["pages_by_state"]} >= {"clean", "leased", "unbacked"}
        engine.detach()


def test_where_no_daemon_answers_it_says_what_to_type_and_exits_3(tmp_path: object) -> None:
    result = run_command(["vattctl", "status", "--socket-dir", str(tmp_path)])
    assert result.returncode == 3
    assert result.stdout == ""
    assert "`vattd start`" in result.stderr


def test_a_daemon_that_died_is_unreachable_too() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.process.kill()
        vattd.process.wait()
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)])
    assert result.returncode == 3
    assert "`vattd start --gpu host`" in result.stderr


def test_a_socket_that_a_killed_daemon_left_does_not_count() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        dead = vattd.socket_dir / "GPU-dead"
        dead.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(dead / "engine.sock"))
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)])
        assert result.returncode == 0, result.stderr


def test_a_clients_name_is_shown_as_it_is() -> None:
    name = "[/red] :smile:"
    with (
        Vattd("--pool-max", "64MiB") as vattd,
        RawEngine(vattd.sockets, "chat", client_name=name) as engine,
    ):
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)])
        assert name in result.stdout
        engine.detach()


def test_usage_errors_exit_2() -> None:
    assert run_command(["vattctl", "status", "--nonsense"]).returncode == 2
    assert run_command(["vattctl", "status", "-o", "xml"]).returncode == 2
