"""Of one vattd: its driver, its sessions, and its own process."""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, ORANGE, PURPLE, RED, TEAL, Line, Panel, graph
from deploy.dashboards.queries import SECONDS, or_none, or_zero, quantile, rate


def driver(here: str) -> list[Panel]:
    return [
        graph(
            "Pages made, lent again, scrubbed, destroyed",
            "recycled is the cheap way: lent again without a driver call. Many made and destroyed at a steady load: "
            "give the pool a larger --pool-min or --idle-after.",
            Line(rate("vattd_pages_created_total", here), "created", TEAL),
            Line(rate("vattd_pages_recycled_total", here), "recycled", GREEN),
            Line(rate("vattd_pages_scrubbed_total", here), "scrubbed", PURPLE),
            Line(rate("vattd_pages_destroyed_total", here), "destroyed", ORANGE),
            unit="ops",
        ),
        graph(
            "Driver calls, by call",
            "As the driver thread runs them: one call may be for many pages.",
            Line(rate("vattd_driver_call_seconds_count", here, "call"), "{{call}}"),
            unit="ops",
        ),
        graph(
            "The driver thread's time, by call",
            "There is one: near 100 % in all, leases wait for the driver. Whatever is on top is what to have less of.",
            Line(rate("vattd_driver_call_seconds_sum", here, "call"), "{{call}}"),
            unit="percentunit",
            stacked=True,
        ),
        graph(
            "How long driver calls take, 99th percentile",
            "`vattctl bench` measures them on an idle device; far above that, the device or the machine is busy.",
            Line(quantile(0.99, "vattd_driver_call_seconds", here, "call"), "{{call}}"),
            unit="s",
        ),
        graph(
            "Driver errors",
            "The driver's own names. OUT_OF_MEMORY: other programs have the device's memory. Anything else: `vattctl "
            "doctor`, and vattd's log.",
            Line(or_none(rate("vattd_driver_errors_total", here, "call, code"), "call", "code"), "{{call}} {{code}}"),
            unit="ops",
        ),
        graph(
            "The CUDA context for scrubbing",
            "Device memory that it takes; there is none on host memory, nor with --scrub never, nor before an engine "
            "came.",
            Line(or_zero(f"sum(vattd_context_bytes{{{here}}})"), "context", PURPLE),
            unit="bytes",
        ),
    ]


def recovery(here: str) -> list[Panel]:
    return [
        graph(
            "Sessions, by tenant",
            "Attached engine processes.",
            Line(f"sum by (tenant) (vattd_sessions{{{here}}})", "{{tenant}}"),
            unit="short",
            stacked=True,
        ),
        graph(
            "Ends of sessions, by cause",
            "detached: in good order. exited: the process ended without a word. evicted, killed: asked to leave, or "
            "ended, by vattd or an operator. lost: it ended while no vattd ran. Many exited: engines crash, look at "
            "their logs.",
            Line(rate("vattd_session_ends_total", here, "cause"), "{{cause}}"),
            unit="ops",
        ),
        graph(
            "Fenced, and not back yet",
            "fenced: the stream broke and the process lives. awaited: sessions of the vattd before that have not "
            "re-attached; their memory is kept. For minutes: the engine hangs, `vattctl status` names it.",
            Line(f"sum(vattd_sessions_fenced{{{here}}})", "fenced", ORANGE),
            Line(f"sum(vattd_sessions_awaited{{{here}}})", "awaited", BLUE),
            unit="short",
        ),
        graph(
            "Kept for sessions that are not back",
            "Bytes that they hold by the journal, lent to nobody. `vattctl evict SESSION --kill` ends one that will "
            "not come back.",
            Line(f"sum(vattd_unclaimed_bytes{{{here}}})", "unclaimed", ORANGE),
            unit="bytes",
        ),
        graph(
            "Recovered, lost, disputed",
            "Since vattd started. Disputed pages were claimed by two sessions: a bug of an engine or of ours, please "
            "report it.",
            Line(f"sum(vattd_sessions_recovered_total{{{here}}})", "sessions recovered", GREEN),
            Line(f"sum(vattd_sessions_lost_total{{{here}}})", "sessions lost", ORANGE),
            Line(f"sum(vattd_disputed_pages_total{{{here}}})", "pages disputed", RED),
            unit="short",
        ),
        graph(
            "Quarantined",
            "Pages that somebody may still write to. After a death they come back in seconds; what stays is lost "
            "until vattd is started anew (`vattd start --replace --detach`).",
            Line(f'sum(vattd_pool_bytes{{{here}, state="quarantined"}})', "quarantined", RED),
            unit="bytes",
        ),
    ]


def vattd_itself(here: str) -> list[Panel]:
    calls = f'grpc_service=~"vatt.*", {here}'
    return [
        graph(
            "Calls, by method",
            "gRPC. An engine speaks at most once a step; more is one that works around its page cache.",
            Line(rate("grpc_server_handled_total", calls, "grpc_method"), "{{grpc_method}}"),
            unit="ops",
        ),
        graph(
            "How long calls take, 99th percentile",
            "Those with one answer: streams (Attach, WatchEvents) are open for as long as somebody listens. LeasePages "
            "includes the queue.",
            Line(
                quantile(0.99, "grpc_server_handling_seconds", f'{calls}, grpc_type="unary"', "grpc_method"),
                "{{grpc_method}}",
            ),
            unit="s",
        ),
        graph(
            "Calls that were refused, by code",
            "ResourceExhausted is a pool that is short. PermissionDenied: somebody tries what is not theirs.",
            Line(
                or_none(rate("grpc_server_handled_total", f'{calls}, grpc_code!="OK"', "grpc_code"), "grpc_code"),
                "{{grpc_code}}",
            ),
            unit="ops",
        ),
        graph(
            "Processor",
            "Of one core. Near 100 % vattd itself is what leases wait for: are engines calling it in a loop? See "
            "Calls, by method.",
            Line(f"sum(rate(process_cpu_seconds_total{{{here}}}[{SECONDS}]))", "vattd", BLUE),
            unit="percentunit",
        ),
        graph(
            "Own memory",
            "Resident. It should be flat: what grows for days is a bug of ours, please report it.",
            Line(f"sum(process_resident_memory_bytes{{{here}}})", "resident", BLUE),
            unit="bytes",
        ),
        graph(
            "Open files",
            "Beside the limit. At the limit leases fail with SYSTEM_LIMIT: raise it (LimitNOFILE, or `ulimit -n`).",
            Line(f"sum(process_open_fds{{{here}}})", "open", BLUE),
            Line(f"sum(process_max_fds{{{here}}})", "limit", RED),
            unit="short",
        ),
    ]
