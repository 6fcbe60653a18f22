"""A headless Chromium that a test drives over the DevTools protocol, through pipes: no port, no further package.

Messages are JSON, each ended by a NUL byte; the browser reads them from descriptor 3 and writes to descriptor 4.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 60.0
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


def program() -> str | None:
    """Where Chromium is; None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page. `said` has what its console printed and what it could not do, `asked` the addresses that it fetched."""

    def __init__(self, profile: Path) -> None:
        """profile: a fresh folder."""
        if program() is None:
            pytest.skip(f"no Chromium is installed (none of {', '.join(PROGRAMS)})")
        to_browser, from_browser = os.pipe(), os.pipe()

        def as_three_and_four() -> None:
            ends = os.dup(to_browser[0]), os.dup(from_browser[1])
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [program(), *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=as_three_and_four,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        os.set_blocking(from_browser[0], False)
        self._write, self._read = to_browser[1], from_browser[0]
        self._number, self._pending, self._session = 0, b"", None
        self.said: list[str] = []
        self.asked: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol. Raises RuntimeError with what the browser says against it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def open(self, path: Path) -> float:
        """Opens a file and waits until it is loaded; the seconds that it took."""
        started = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.run("document.readyState") != "complete" or not self.run("location.href").startswith("file:"):
            time.sleep(0.02)
        return time.monotonic() - started

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """A key, as `KeyboardEvent.key` calls it. text: what it types."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}
        options = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        text = "\r" if key == "Enter" else text
        self.call("Input.dispatchKeyEvent", type="keyDown", **options, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def look(self, path: Path, width: int, height: int, *, dark: bool = False, whole: bool = False) -> None:
        """Sets the size and colours of the screen, and writes what it shows as a PNG. whole: the whole page."""
        self.screen(width, height, dark=dark)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            try:
                part = os.read(self._read, 2**20)
                if not part:
                    raise RuntimeError("the browser has ended")
                self._pending += part
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the browser has not answered in {_SECONDS:g} s") from None
                time.sleep(0.005)
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(values["exceptionDetails"]["exception"]["description"])
        elif method == "Runtime.consoleAPICalled":
            self.said.append(f"{values['type']}: {[one.get('value') for one in values['args']]}")
        elif method == "Log.entryAdded":
            self.said.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"])
