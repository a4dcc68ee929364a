"""`vattctl status` as operators and scripts see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from rich.console import Console, RenderableType

from tests.daemon import Vattd, run_command
from tests.raw_engine import RawEngine
from tests.vattctl.command import vattctl
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import Answers
from vattctl.status import render
from vattctl.tenants import render as render_tenants

Render = Callable[[pb.GetStatusResponse, float], RenderableType]


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


def test_in_80_columns_names_are_cut_short_and_shown_whole_below_and_figures_are_not_cut() -> None:
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
    assert lines.count(f"tenant {'t' * 63}") == 2, "below its own row, and below its session's"
    assert lines.count("client vattention/0.1.0 transformers/5.23.0") == 1


def test_names_that_fit_are_shown_once() -> None:
    tenant = pb.Tenant(name="team-a.chat-1")
    session = pb.Session(session_id="1-1", tenant=tenant.name, client_name="me")
    for width in (80, 500):
        lines = printed(pb.GetStatusResponse(tenants=[tenant], sessions=[session]), width=width)
        assert sum(line.count("team-a.chat-1") for line in lines) == 2, "in its own row and in its session's"


def test_what_is_piped_has_whole_names_in_one_line_and_no_spaces_at_the_ends() -> None:
    tenant, client = "t" * 63, "c" * 256
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, tenant, client_name=client) as engine:
        engine.lease(32)
        place = ["--socket-dir", str(vattd.socket_dir)]
        commands = (["status"], ["tenants"], ["reserve", tenant, "--min", "1MiB"], ["unreserve", tenant])
        for columns in ("", "80"):
            for command in commands:
                result = run_command(["vattctl", *command, *place], {"COLUMNS": columns})
                assert result.returncode == 0, result.stderr
                lines = result.stdout.splitlines()
                assert lines == [line.rstrip() for line in lines], command
                assert any(tenant in line for line in lines), (command, columns, result.stdout)
        wide = run_command(["vattctl", "status", *place], {"COLUMNS": ""}).stdout.splitlines()
        assert [line for line in wide if line.split()[:2] == [engine.key.session_id, tenant] and line.endswith(client)]
        engine.detach()


def test_a_tenant_above_its_max_is_shown_with_how_much() -> None:
    tenant = pb.Tenant(
        name="chat", leased_bytes=48 << 20, guarantee=pb.Guarantee(max_bytes=32 << 20, weight=1), source="command"
    )
    answer = pb.GetStatusResponse(tenants=[tenant], pool=pb.Pool(page_size_bytes=1 << 16))
    words = "  over its max by 16.0 MiB: asked back, and no more is lent to it"
    assert words in printed(answer)
    assert words in printed(answer, render_it=tenants_of)
    tenant.leased_bytes = 32 << 20
    assert "over its max" not in "".join(printed(pb.GetStatusResponse(tenants=[tenant], pool=answer.pool)))


def test_a_max_that_was_rounded_up_to_the_pages_of_a_min_is_not_passed() -> None:
    guarantee = pb.Guarantee(min_bytes=100 << 10, max_bytes=100 << 10, weight=1)
    tenant = pb.Tenant(name="chat", leased_bytes=128 << 10, guarantee=guarantee)
    answer = pb.GetStatusResponse(tenants=[tenant], pool=pb.Pool(page_size_bytes=64 << 10))
    assert "over its max" not in "".join(printed(answer))


def printed(
    answer: pb.GetStatusResponse, now_s: float = 0, render_it: Render = render, width: int = 80, **console: Any
) -> list[str]:
    """Lines of at most so many columns."""
    file = StringIO()
    Console(width=width, file=file, highlight=False, **console).print(render_it(answer, now_s))
    lines = file.getvalue().splitlines()
    if not console:  # else there are escape codes, too
        assert max(len(line) for line in lines) <= width
    return [line.rstrip() for line in lines]


def tenants_of(answer: pb.GetStatusResponse, now_s: float) -> RenderableType:
    return render_tenants(Answers([answer], [], None), now_s)


def largest_status() -> pb.GetStatusResponse:
    """Where every figure is as long as it gets."""
    promise = pb.Promise(
        state=pb.Promise.STATE_BROKEN,
        missing_bytes=1023 << 40,
        broken_by=[f"4194303-{number}" for number in range(100, 110)] + ["device"],
    )
    tenant = pb.Tenant(
        name="t" * 63,
        leased_bytes=1023 << 40,
        session_count=4095,
        guarantee=pb.Guarantee(
            min_bytes=1023 << 40, max_bytes=1023 << 40, weight=1000, min_mode=pb.MIN_MODE_HARD, revision=1
        ),
        access=pb.AccessList(uids=range(4_000_000_000, 4_000_000_020)),
        promise=promise,
        source="command",
        waiting_bytes=1023 << 40,
        waiting_leases=7,
        longest_wait=Duration(seconds=3599),
    )
    tenant.until.FromSeconds(86400 * 365)
    session = pb.Session(
        session_id="4194303-100",
        tenant="t" * 63,
        pid=4194303,
        state="attached",
        leased_bytes=1023 << 40,
        asked_back_bytes=1023 << 40,
        asked_back_since=Duration(seconds=86400 * 3 + 7200),
        asked_back_overdue=True,
        client_name="c" * 256,
    )
    pool = pb.Pool(page_size_bytes=1 << 21, waiting_pages=1 << 20, shortage="the device has no memory left: 7 pages")
    pool.promised_bytes, pool.kept_free_bytes = 1023 << 40, 1022 << 40
    daemon = pb.Daemon(version="0.1.0", pid=4194303, state="draining")
    return pb.GetStatusResponse(daemon=daemon, pool=pool, tenants=[tenant], sessions=[session])


def test_status_says_what_is_promised_waited_for_asked_back_and_short() -> None:
    lines = printed(largest_status())
    text = " ".join(" ".join(lines).split())
    assert "vattd 0.1.0, pid 4194303, draining, up for 0.0 s" in text
    assert "promised 1023 TiB to tenants, 1022 TiB of it kept free" in text
    assert "waiting leases wait for 2.00 TiB" in text
    assert "shortage the device has no memory left: 7 pages" in text
    assert "min 1023 TiB hard, max 1023 TiB, weight 1000; broken by 4194303-100 (tttt" in text
    assert "4194303-104 and 6 more: 1023 TiB missing; waiting: 1023 TiB, 59 m 59 s" in text
    assert "  asked back 1023 TiB, 3 d 2 h ago: overdue" in lines


def test_tenants_shows_whole_figures_in_80_columns_and_all_of_a_long_name() -> None:
    lines = printed(largest_status(), render_it=tenants_of)
    assert lines[0].split() == ["TENANT", "MIN", "MAX", "WEIGHT", "LEASED", "SESSIONS", "WAITING"]
    row = "1023 TiB hard  1023 TiB    1000  1023 TiB      4095  1023 TiB, 59 m 59 s"
    assert lines[1].endswith(row)
    assert f"  tenant {'t' * 63}" in lines
    text = " ".join(" ".join(lines).split())
    assert "set by a command, until 1971-01-01" in text
    assert "365 d more; for 4000000000, 4000000001," in text


def test_a_broken_promise_and_what_is_overdue_are_red_where_colours_are_wanted() -> None:
    coloured = "\n".join(printed(largest_status(), force_terminal=True, color_system="standard"))
    assert "\x1b[31mbroken by" in coloured
    assert "\x1b[31moverdue" in coloured
    assert "\x1b[33mdraining" in coloured


def test_a_promise_that_is_pending_says_for_how_long() -> None:
    tenant = pb.Tenant(name="chat", guarantee=pb.Guarantee(min_bytes=1 << 30, weight=1, min_mode=pb.MIN_MODE_SOFT))
    tenant.promise.state, tenant.promise.missing_bytes = pb.Promise.STATE_PENDING, 1 << 29
    assert "  min 1.00 GiB soft; pending: 512 MiB missing" in printed(pb.GetStatusResponse(tenants=[tenant]), 100)
    tenant.promise.deadline.FromSeconds(112)
    lines = printed(pb.GetStatusResponse(tenants=[tenant]), 100)
    assert "  min 1.00 GiB soft; pending for 12 s more: 512 MiB missing" in lines


def test_bars_have_the_width_that_there_is_and_are_never_cut() -> None:
    pages = [pb.PagesInState(state=state, page_count=count) for state, count in (("leased", 900_000), ("clean", 1))]
    pool = pb.Pool(page_size_bytes=1 << 21, pages_by_state=pages)
    for width, marks in ((80, 40), (60, 25), (45, 10)):
        lines = printed(pb.GetStatusResponse(pool=pool), width=width)
        [leased] = [line for line in lines if line.startswith("leased")]
        assert leased.split() == ["leased", "900,000", "1.72", "TiB", "100.0%", "#" * marks]
        [clean] = [line for line in lines if line.startswith("clean")]
        assert clean.endswith("0.0%  #"), "what is there is seen"


def test_while_it_drains_status_says_how_to_end_that() -> None:
    answer = pb.GetStatusResponse(daemon=pb.Daemon(state="draining"))
    assert "draining  no new sessions or requests; `vattctl drain --resume` ends it" in printed(answer)
    answer.daemon.state = "serving"
    assert "draining" not in "".join(printed(answer))


def test_the_page_map_is_a_line_where_it_fits() -> None:
    cells = [pb.PageCell(state="leased", tenant=2)] * 40 + [pb.PageCell(state="dirty", tenant=1)] * 32
    page_map = pb.GetPageMapResponse(pages_per_cell=1, tenants=["batch", "chat"], cells=cells)
    pool = pb.Pool(pages_by_state=[pb.PagesInState(state="dirty", page_count=32)])
    answer = pb.GetStatusResponse(pool=pool, tenants=[pb.Tenant(name="batch"), pb.Tenant(name="chat")])

    def with_map(answer: pb.GetStatusResponse, now_s: float) -> RenderableType:
        return render(answer, now_s, page_map)

    lines = printed(answer, render_it=with_map)
    assert f"MAP   {'B' * 40}{'~' * 32}" in lines
    assert "      B chat  ~ dirty" in lines
    assert "MAP  " not in "".join(printed(answer, render_it=with_map, width=70))
    assert "MAP  " not in "".join(printed(answer)), "vattd is older than page maps"


def test_status_of_a_real_pool_has_its_page_map() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(512)
        [line] = [line for line in vattctl(vattd, "status").stdout.splitlines() if line.startswith("MAP")]
        assert 30 <= line.count("A") <= 40, "half of it"
        engine.detach()


def test_json_has_the_protos_names_and_raw_numbers() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(32)
        engine.report(static_reservation_bytes=16 << 20)
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir), "-o", "json"])
        everything = json.loads(result.stdout)
        assert everything["unreachable"] == []
        [answer] = everything["daemons"]
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
    assert f"`vattd start --socket-dir {tmp_path}`" in result.stderr, "one that is started elsewhere would not be found"


def test_a_daemon_that_died_is_unreachable_too() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.process.kill()
        vattd.process.wait()
        result = run_command(["vattctl", "status", "--socket-dir", str(vattd.socket_dir)])
    assert result.returncode == 3
    assert f"`vattd start --gpu host --socket-dir {vattd.socket_dir}`" in result.stderr


def test_in_its_own_directory_the_command_to_start_it_is_short() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.stop(signal.SIGKILL)
        result = run_command(["vattctl", "status"], {"VATTD_SOCKET_DIR": str(vattd.socket_dir)})
    assert "`vattd start --gpu host`" in result.stderr


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


def test_an_output_that_cannot_be_written_is_an_error_of_one_line() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, open("/dev/full", "w") as full:
        for output in ("table", "json"):
            command = [sys.executable, "-m", "vattctl", "status", "-o", output, "--socket-dir", str(vattd.socket_dir)]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert (result.returncode, result.stderr) == (1, "vattctl: No space left on device\n")


@pytest.mark.parametrize("columns", ["0", "many", ""])
def test_a_width_that_is_none_is_passed_over(columns: str) -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        assert "host memory" in vattctl(vattd, "status", env={"COLUMNS": columns}).stdout
