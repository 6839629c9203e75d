"""A real browser without a window, driven over its DevTools socket: keys, sizes, what a page then shows."""

import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}


class Page:
    """One page.  errors: what its scripts raised and what it asked for in vain."""

    def __init__(self, socket):
        self.socket, self.sent, self.errors = socket, 0, []
        for domain in ("Page", "Runtime", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def _receive(self) -> dict:
        message = json.loads(self.socket.recv())
        if message.get("method") in ("Runtime.exceptionThrown", "Network.loadingFailed"):
            self.errors.append(message["params"])
        return message

    def call(self, method: str, **params) -> dict:
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while (message := self._receive()).get("id") != self.sent:
            pass
        assert "error" not in message, message
        return message["result"]

    def open(self, path, width: int = 1000) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=path.as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def js(self, expression: str):
        """The value of an expression, as JSON."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])


@contextmanager
def browser(folder):
    """A page of a browser that keeps its files in `folder`; skips the test where there is none."""
    websocket = pytest.importorskip("websocket", reason="websocket-client, which comes with jupyterlab, is missing")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [program, *flags, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place, patience = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (place.exists() and place.read_text().count("\n")):
            if process.poll() is not None or time.monotonic() > patience:
                pytest.skip(f"{program} does not start here (exit status {process.poll()})")
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{place.read_text().split()[0]}/json", timeout=30) as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
        yield Page(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait()
