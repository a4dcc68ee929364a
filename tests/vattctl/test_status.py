"""`vattctl status` as operators and scripts see it."""

from __future__ import annotations

import json
import socket
from io import StringIO

from rich.console import Console

from tests.daemon import Vattd, run_command
from tests.raw_engine import RawEngine
from vatt.v1 import vatt_pb2 as pb
from vattctl.status import render


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


def test_the_table_shows_how_well_each_tenant_uses_its_memory() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(32)
        engine.report(mapped_pages=16, token_bytes=768 << 10, static_reservation_bytes=16 << 20)
        with RawEngine(vattd.sockets, "empty") as empty:
            result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)])
            empty.detach()
        rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
        assert " ".join(rows["chat"].split()) == "chat 2.00 MiB 1.00 MiB 16.0 MiB 75.0% 93.8%"
        assert " ".join(rows["empty"].split()) == "empty 0 B 0 B 0 B - -"
        engine.detach()


def test_in_80_columns_names_are_cut_short_and_figures_are_not() -> None:
    tenant = pb.Tenant(
        name="t" * 63,
        leased_bytes=1023 << 40,
        mapped_bytes=1022 << 40,
        token_bytes=1022 << 40,
        static_reservation_bytes=1 << 40,
    )
    session = pb.Session(
        session_id="4194303-4095",
        tenant="t" * 63,
        pid=4194303,
        state="attached",
        leased_bytes=1023 << 40,
        mapped_bytes=1022 << 40,
        client_name="vattention/0.1.0 transformers/5.23.0",
    )
    file = StringIO()
    Console(width=80, file=file, highlight=False).print(
        render(pb.GetStatusResponse(tenants=[tenant], sessions=[session]), 0)
    )
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines() if len(line) <= 80]
    assert [line for line in lines if line.endswith("… 1023 TiB 1022 TiB 1.00 TiB 100.0% -102100.0%")]
    assert [line for line in lines if "… 4194303 attached 1023 TiB 1022 TiB vatt" in line]


def test_json_has_the_protos_names_and_raw_numbers() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(32)
        engine.report(static_reservation_bytes=16 << 20)
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir), "-o", "json"])
        answer = json.loads(result.stdout)
        assert answer["pool"]["max_bytes"] == 64 << 20
        [session] = answer["sessions"]
        assert session["leased_bytes"] == 2 << 20
        assert session["mapped_bytes"] == 0, "every field is there, zeros too"
        [tenant] = answer["tenants"]
        assert tenant.keys() >= {"token_bytes", "static_reservation_bytes", "paged16_bytes", "paged256_bytes"}
        assert tenant["static_reservation_bytes"] == session["static_reservation_bytes"] == 16 << 20
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
