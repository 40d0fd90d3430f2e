"""A headless Chromium driven over the DevTools protocol: pages with workers, real keys and pointers, nothing mocked.

https://chromedevtools.github.io/devtools-protocol/. By a pipe, not a WebSocket: no port, and no package for it.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from browser_probe import BROWSER

# Chromium reads commands from descriptor 3 and writes answers and events to 4.
_COMMANDS, _ANSWERS, _OUT_OF_THE_WAY = 3, 4, 10
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    # No other name is looked up, so that no request leaves this machine even if a page makes one.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_SECONDS = 60
_KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
    " ": 32,
}
_MODIFIERS = {"shift": 8, "ctrl": 2}


@dataclass
class Page:
    """A tab, with all workers that it starts. ``complaints`` are errors and warnings of the console, exceptions and
    violations of its policy; ``requests`` the addresses of whatever it and its workers asked for.
    """

    browser: _Pipe
    session: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, params, self.session)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise; it must be JSON."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, expression: str, *, within_s: float = _SECONDS) -> Any:
        """The expression's value once it is true, true for an element; fails with what the page shows otherwise."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            value = self.evaluate(
                f"(() => {{ try {{ const value = {expression}; return value instanceof Node || value }}"
                "catch { return null } })()"
            )
            if value:
                return value
            time.sleep(0.05)
        shown = self.evaluate("document.body?.innerText.slice(0, 800)")
        raise AssertionError(f"{expression} is not true after {within_s:.0f} s; {self.complaints}; page: {shown}")

    def wait_for_tab(self, address: str) -> None:
        """Wait until a link has opened the address in a tab of its own, and close that."""
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            tabs = self.browser.call("Target.getTargets", {})["targetInfos"]
            if opened := [tab["targetId"] for tab in tabs if tab["url"] == address]:
                self.browser.call("Target.closeTarget", {"targetId": opened[0]})
                return
            time.sleep(0.05)
        raise AssertionError(f"no tab has {address}, but {[tab['url'] for tab in tabs]}")

    def click(self, selector: str) -> None:
        x, y = self.evaluate(
            "((element) => { element.scrollIntoView({ block: 'center' }); const box = element.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2] })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left button at ``start``, release it at ``end``, in CSS pixels of the view."""
        for kind, (x, y), held in (("mouseMoved", start, 0), ("mousePressed", start, 1), ("mouseMoved", end, 1)):
            self._mouse(kind, x, y, held)
        self._mouse("mouseReleased", *end, 0)

    def move(self, x: float, y: float) -> None:
        self._mouse("mouseMoved", x, y, 0)

    def key(self, name: str, *, modifier: str = "") -> None:
        """Press and release a key, such as ``a``, ``Enter`` or ``ArrowLeft``."""
        event: dict[str, Any] = {"key": name, "windowsVirtualKeyCode": _KEYS.get(name, ord(name[0].upper()))}
        event["modifiers"] = _MODIFIERS.get(modifier, 0)
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _mouse(self, kind: str, x: float, y: float, held: int) -> None:
        button = "none" if kind == "mouseMoved" and not held else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=held, clickCount=1)


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """One page of a browser of its own, at 1440 × 1000 pixels; the browser ends with the block."""
    pipe = _Pipe(profile)
    try:
        target = pipe.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = pipe.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(pipe, session)
        pipe.page = page
        pipe.watch(session, is_page=True)
        page.size(1440, 1000)
        yield page
    finally:
        pipe.close()


class _Pipe:
    """The protocol: commands with their answers, and events, which the reading thread writes into the page's lists."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        command_read, command_write = _pipe()
        answer_read, answer_write = _pipe()
        moves = [(os.POSIX_SPAWN_DUP2, command_read, _COMMANDS), (os.POSIX_SPAWN_DUP2, answer_write, _ANSWERS)]
        silence = [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
        arguments = [BROWSER, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # A browser that is killed leaves the folder of its socket behind.
        self._temp = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        environment = {**os.environ, "TMPDIR": self._temp.name}
        # Of its own group, so that its many processes end with it.
        self._process = os.posix_spawn(BROWSER, arguments, environment, file_actions=[*moves, *silence], setpgroup=0)
        os.close(command_read)
        os.close(answer_write)
        self._write, self._read = os.fdopen(command_write, "wb"), os.fdopen(answer_read, "rb")
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self.page: Page | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def call(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        """The command's result; AssertionError for an error, and where no answer comes."""
        number = self.send(method, params, session, answered=True)
        try:
            answer = self._answers[number].get(timeout=_SECONDS)
        except queue.Empty:
            raise AssertionError(f"the browser does not answer {method}") from None
        del self._answers[number]
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def send(self, method: str, params: dict[str, Any], session: str = "", *, answered: bool = False) -> int:
        message: dict[str, Any] = {"method": method, "params": params} | ({"sessionId": session} if session else {})
        with self._lock:
            message["id"] = number = next(self._numbers)
            if answered:
                self._answers[number] = queue.SimpleQueue()
            self._write.write(json.dumps(message).encode() + b"\0")
            self._write.flush()
        return number

    def watch(self, session: str, *, is_page: bool = False) -> None:
        """Have this target's requests, complaints and workers reported, before any of its scripts runs."""
        for domain in ("Network", "Runtime", "Log", *(["Page"] if is_page else [])):
            self.send(f"{domain}.enable", {}, session)
        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        self.send("Target.setAutoAttach", attach, session)
        self.send("Runtime.runIfWaitingForDebugger", {}, session)

    def close(self) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        self._temp.cleanup()
        self._write.close()

    def _listen(self) -> None:
        buffered = b""
        while chunk := os.read(self._read.fileno(), 2**16):
            *messages, buffered = (buffered + chunk).split(b"\0")
            for message in messages:
                self._receive(json.loads(message))

    def _receive(self, message: dict[str, Any]) -> None:
        if "id" in message:
            if waiting := self._answers.get(message["id"]):
                waiting.put(message)
        elif self.page is not None:
            self._note(self.page, message["method"], message["params"])

    def _note(self, page: Page, event: str, params: dict[str, Any]) -> None:
        if event == "Target.attachedToTarget":
            self.watch(params["sessionId"])
        elif event == "Network.requestWillBeSent":
            page.requests.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            page.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            page.complaints.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            page.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


def _pipe() -> tuple[int, int]:
    """A pipe whose ends lie above the descriptors that the browser's will get."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for end in ends)
    for end in ends:
        os.close(end)
    return read, write
