"""A headless Chromium, driven by its DevTools protocol: opens pages, runs JavaScript in them, notes what they say and
load. Used by tests/test_pages.py and benchmarks/report_pictures.py.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "chromium"
INSTALL_S, START_S, ANSWER_S = 200.0, 30.0, 20.0
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    "--force-device-scale-factor=1",
)  # fmt: skip


def program() -> tuple[str | None, str]:
    """The browser, which Debian's package brings where it is missing; None, and why there is none."""
    if found := next((path for name in NAMES if (path := shutil.which(name))), None):
        return found, ""
    if os.geteuid() != 0:
        return None, f"there is no Chromium, and only root may install it: apt-get install {PACKAGE}"
    if shutil.which("apt-get") is None:
        return None, "there is no Chromium, and no apt-get to install it"
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    variables = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*apt, "update"], [*apt, "-y", "install", "--no-install-recommends", PACKAGE]):
        try:
            subprocess.run(command, env=variables, check=True, capture_output=True, timeout=INSTALL_S)
        except (subprocess.SubprocessError, OSError) as error:
            return None, f"{' '.join(command)} has failed: {error}"
    return shutil.which(PACKAGE), f"{PACKAGE} was installed and is not there"


class Tab:
    """A page of the browser."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self.said: list[str] = []
        """What the page has written to the console, and its errors."""
        self.loaded: list[str] = []
        """The addresses that it has asked for."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that come meanwhile are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(params))
        elif message.get("method") == "Network.requestWillBeSent":
            self.loaded.append(params["request"]["url"])
        elif message.get("method") == "Page.loadEventFired":
            self._is_loaded = True

    def open(self, path: Path) -> None:
        """Opens a file, and waits until all of it is there."""
        self.said.clear()
        self.loaded.clear()
        self._is_loaded = False
        self.ask("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + ANSWER_S
        while not self._is_loaded:
            self._note(json.loads(self._socket.recv(timeout=max(0.01, until - time.monotonic()))))

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show(self, width: int, height: int, *, dark: bool = False) -> None:
        """Sets the size of the window, and what the user prefers."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def point(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self) -> bytes:
        """Returns what the window shows as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def opened(browser: str) -> Iterator[Tab]:
    """Starts the browser with one empty page."""
    from websockets.sync.client import connect

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [browser, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            port = _port(Path(folder) / "DevToolsActivePort", process)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=ANSWER_S) as answer:
                page = next(target for target in json.load(answer) if target["type"] == "page")
            with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Tab(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(path.read_text().splitlines()[0])
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} has not opened a port within {START_S:.0f} s, or has ended")
