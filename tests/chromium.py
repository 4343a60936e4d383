"""A headless Chromium, driven as a reader would: by mouse and key, over the DevTools pipe.

The DevTools protocol needs no WebSocket where `--remote-debugging-pipe` is given: messages are
JSON, each ended by a zero byte, on the browser's file descriptors 3 and 4.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATH = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    "--remote-debugging-pipe"
)
PATIENCE_S = 60.0


class Page:
    """One tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in, self._rest = to_browser, from_browser, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> Any:
        """One command and its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], deadline - time.monotonic())
            assert ready, "Chromium did not answer"
            more = os.read(self._in, 2**20)
            assert more, "Chromium ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.errors.append(json.dumps(message["params"]))
        return message

    def open(self, url: str, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Opens an address in a window of so many CSS pixels; narrow ones are phones."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.media("screen", dark=dark)
        self("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def media(self, kind: str, *, dark: bool = False) -> None:
        """As on a screen or on paper, in the reader's colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Presses the mouse in the middle of the first element that is selected."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def choose(self, selector: str, file: Path) -> None:
        """Chooses a file in an input of files."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, key: str) -> None:
        """Presses a key, such as "Tab" or "Enter"."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"Enter": "\r"}.get(key)
        parameters = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self("Input.dispatchKeyEvent", **down, **parameters)
        self("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Writes a PNG of the page, or of what the window shows."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Page]:
    """A browser with a profile and flags of its own, ended with the block."""
    assert PATH
    to_browser, from_browser = os.pipe(), os.pipe()
    theirs = (to_browser[0], from_browser[1])
    # The shell opens the pipes' ends again where Chromium looks for them (dash knows `3<&N` for
    # a single digit only).
    script = f'exec "$0" "$@" 3</proc/self/fd/{theirs[0]} 4>/proc/self/fd/{theirs[1]}'
    words = [PATH, *FLAGS.split(), *flags, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["sh", "-c", script, *words],
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in theirs:
        os.close(end)
    try:
        page = Page(to_browser[1], from_browser[0])
        yield page
        page._session = None
        page("Browser.close")
    finally:
        os.close(to_browser[1])
        os.close(from_browser[0])
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
