"""An engine at random: it admits, grows and ends requests, and gives up running ones when asked to, or does not.

With `--within PAGES` it never asks for more than its tenant was promised, and then must never be refused: a GROW of a
hard min not once, an ADMIT of a soft one not within `--patience` seconds.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tests.e2e.worker import Worker
from vatt.errors import DaemonUnreachable, LimitExceeded, PoolExhausted
from vattention import Session

MOST_AT_ONCE = 48


class RandomEngine:
    """One step at a time; `tally` counts what came of them."""

    def __init__(self, worker: Worker, options: argparse.Namespace) -> None:
        self._worker, self._options = worker, options
        self._random = worker.random
        self.tally: Counter[str] = Counter()
        self.longest_s = 0.0

    def step(self) -> None:
        word = self._promised_step() if self._options.within else self._any_step()
        self.tally[word] += 1

    def _promised_step(self) -> str:
        """A refusal is an error here."""
        room = self._options.within - self._worker.held_pages
        if room <= 0 or self._random.random() < 0.3:
            return self._end_one()
        page_count = self._random.randint(1, min(room, MOST_AT_ONCE))
        if self._options.hard:
            row = min(range(len(self._worker.rows)), key=lambda row: len(self._worker.rows[row]))
            self._worker.grow(row, min(page_count, self._worker.row_pages - len(self._worker.rows[row])))
            return "grown"
        self.longest_s = max(self.longest_s, self._worker.admit(page_count, self._options.patience))
        return "admitted"

    def _any_step(self) -> str:
        move, page_count = self._random.random(), self._random.randint(1, MOST_AT_ONCE)
        try:
            if move < 0.3:
                self._worker.admit(page_count, self._random.choice([0, 0.01, 0.3]))
                return "admitted"
            if move < 0.6:
                row = self._random.randrange(len(self._worker.rows))
                room = self._worker.row_pages - len(self._worker.rows[row])
                if room:
                    self._worker.grow(row, min(room, page_count))
                return "grown"
        except (PoolExhausted, LimitExceeded):
            self._end_one()
            return "refused"
        except DaemonUnreachable:  # we were stopped while a call was under way; what came of it is settled later
            return "late"
        return self._end_one()

    def _end_one(self) -> str:
        with self._worker.lock:
            self._worker.empty(self._random.randrange(len(self._worker.rows)))
        return "ended"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-dir", type=Path, required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--within", type=int, default=0)
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--patience", type=float, default=5.0)
    parser.add_argument("--deaf", action="store_true", help="give nothing up when asked")
    options = parser.parse_args()
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    with Session.connect(options.tenant, socket_dir=options.socket_dir) as session:
        worker = Worker(session, MOST_AT_ONCE, options.seed)
        if not options.deaf:
            session.on_pressure = worker.give_up
        engine = RandomEngine(worker, options)
        print("attached", session.session_id, flush=True)
        while not ending.is_set():
            engine.step()
            if engine.tally.total() % 8 == 0:
                time.sleep(0.001)  # eight of them share two cores with what they test
        session.on_pressure = None
        result = worker.finish()
    figures = {**result, **engine.tally, "pressed": worker.pressed, "longest_s": engine.longest_s}
    print(json.dumps(figures), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
