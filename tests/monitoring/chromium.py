"""A real Chromium without a window, by its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ANSWER_WITHIN_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
# It reads its orders from descriptor 3 and answers on 4.
_EXEC = """
import fcntl, os, sys
orders, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])  # out of the way of 3 and 4
os.dup2(orders, 3), os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_OPTIONS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
]


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Refused(Exception):
    """The browser did not do what it was told."""


class Chromium:
    """One browser, ended with all its processes on exit."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        orders, self._orders = os.pipe()
        answers, answers_child = os.pipe()
        options = [*_OPTIONS, f"--user-data-dir={self._profile}"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # it refuses to run otherwise
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(orders), str(answers_child), path, *options, "about:blank"],
            pass_fds=[orders, answers_child],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(orders)
        os.close(answers_child)
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What it answers. Raises Refused."""
        number = next(self._numbers)
        answer = self._waiting[number] = Future()
        order = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        return answer.result(ANSWER_WITHIN_S)

    def open(self, url: str) -> Page:
        """A new tab, once it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable", session)
        page.go(url)
        return page

    def _listen(self) -> None:
        rest = b""
        while chunk := self._answers.read(1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                self._take(message)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Refused("the browser has ended"))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            page = self._pages.get(message.get("sessionId", ""))
            if page is not None:
                page.heard(message["method"], message["params"])
        elif "error" in message:
            self._waiting[message["id"]].set_exception(Refused(message["error"]["message"]))
        else:
            self._waiting[message["id"]].set_result(message["result"])

    def close(self) -> None:
        with suppress(Refused, OSError):
            self.call("Browser.close")
        self._process.wait(ANSWER_WITHIN_S)
        self._thread.join(ANSWER_WITHIN_S)
        os.close(self._orders)
        self._answers.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Look:
    """How a page is looked at."""

    width: int = 1440
    height: int = 900
    dark: bool = False
    scale: float = 1.0
    phone: bool = False


class Page:
    """A tab, what it asked for, and what went wrong in it."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def heard(self, method: str, facts: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(facts["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(facts["args"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")

    def go(self, url: str) -> None:
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise Refused(f"{url}: {answer['errorText']}")

    def value(self, expression: str) -> Any:
        """Of JavaScript; a promise's, once it is kept. Raises Refused."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise Refused(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Until this JavaScript is true. Raises TimeoutError."""
        look = f"() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }}"
        self.value(
            f"new Promise((kept) => {{ const look = {look};"
            "const again = () => look() ? kept(true) : setTimeout(again, 20); again(); })"
        )

    def text(self, selector: str) -> str:
        """As somebody reads it."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    def look(self, look: Look) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=look.width,
            height=look.height,
            deviceScaleFactor=look.scale,
            mobile=look.phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if look.dark else "light"}
        self.call(
            "Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}]
        )
        self.value("new Promise((kept) => requestAnimationFrame(() => requestAnimationFrame(() => kept(true))))")

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """As PNG: the whole page, or what its window shows."""
        clip = self.call("Page.getLayoutMetrics")["cssContentSize"]
        area = {"clip": {**clip, "x": 0, "y": 0, "scale": 1}, "captureBeyondViewport": True} if whole else {}
        answer = self.call("Page.captureScreenshot", format="png", **area)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path


@contextmanager
def opened(url: str, look: Look | None = None) -> Iterator[Page]:
    """A page in a browser of its own. Raises Refused where there is no Chromium."""
    path = find_chromium()
    if path is None:
        raise Refused("no Chromium here: `apt-get install chromium`")
    with Chromium(path) as browser:
        page = browser.open(url)
        page.look(look or Look())
        yield page
