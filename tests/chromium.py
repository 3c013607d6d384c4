"""Drives Chromium over its DevTools pipe with the standard library alone: `with Browser() as b: tab = b.open(address)`."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE = 60
"""Seconds without a word from the browser."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium found (Debian: apt-get install chromium; or name one in EFFACE_CHROMIUM)"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--mute-audio"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


def find() -> str | None:
    """The browser's program, where there is one."""
    return os.environ.get("EFFACE_CHROMIUM") or next((p for n in NAMES if (p := shutil.which(n))), None)


class Browser:
    """One headless browser with a profile of its own; ends with the block."""

    def __init__(self) -> None:
        program = find()
        assert program, MISSING
        self.profile = tempfile.mkdtemp(prefix="efface-chromium-")
        read, self._write = os.pipe()
        self._read, write = os.pipe()

        def ends() -> None:
            """The browser reads from 3 and writes to 4."""
            a, b = os.dup(read), os.dup(write)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=ends, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._number:
                assert "error" not in got, f"{method}: {got['error']}"
                return got["result"]
            self.events.append(got)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], PATIENCE)[0], f"Chromium says nothing for {PATIENCE} s"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, address: str, width: int = 1400, height: int = 900, dark: bool = False, early: str = "") -> "Tab":
        """A new tab at an address, once its script has run; `early` is run before any of the page's own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.size(width, height)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        if early:
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=early)
        tab.call("Page.navigate", url=address)
        tab.until("document.documentElement.dataset.ready === '1'")
        return tab


class Tab:
    """One page of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def close(self) -> None:
        """Ends the tab."""
        self.call("Page.close")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited; what it throws is raised."""
        got = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"].get("exception", got["exceptionDetails"])
        return got["result"].get("value")

    def until(self, condition: str, seconds: float = 20) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"(() => {{ try {{ return !!({condition}); }} catch (e) {{ return false; }} }})()"):
            assert time.monotonic() < end, f"never true: {condition}\n{self.run('document.body.innerText.slice(0, 800)')}"
            time.sleep(0.03)

    def size(self, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def key(self, name: str, times: int = 1) -> None:
        """Presses a key, as it is named by `KeyboardEvent.key`."""
        codes = {
            "Enter": 13,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowLeft": 37,
            "End": 35,
            "Home": 36,
            "Tab": 9,
            "PageDown": 34,
            "Escape": 27,
        }
        text = {"text": "\r"} if name == "Enter" else {}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=codes[name], **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=codes[name])

    def hover(self, selector: str) -> None:
        """Moves the mouse over the middle of the first element that a selector finds."""
        self.run(
            f"new Promise(done => {{ document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}});"
            " requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))); })"
        )
        x, y = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def go(self, place: str) -> None:
        """Shows a page of the site by what stands behind #."""
        self.run(
            f"new Promise(done => {{ if (location.hash === {json.dumps(place)}) return done();"
            " document.addEventListener('shown', () => done(), {once: true});"
            f" location.hash = {json.dumps(place)}; }})"
        )

    def shot(self, path: Path, whole: bool = True) -> None:
        """A picture of the page, at most 6,000 pixels of it."""
        height = min(6000, max(300, int(self.run("document.documentElement.scrollHeight")))) if whole else 900
        width = int(self.run("innerWidth"))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """What the page has logged as an error or thrown so far: a blocked script or address, an exception."""
        self.run("1")
        found = []
        for e in self.browser.events:
            if e.get("sessionId") != self.session:
                continue
            p = e.get("params", {})
            if e["method"] == "Runtime.exceptionThrown":
                found.append(str(p["exceptionDetails"].get("exception", {}).get("description", p)))
            elif e["method"] == "Log.entryAdded" and p["entry"]["level"] == "error":
                found.append(p["entry"]["text"])
        return found

    def asked(self) -> list[str]:
        """Addresses that the page has asked for."""
        return [
            e["params"]["request"]["url"]
            for e in self.browser.events
            if e.get("sessionId") == self.session and e["method"] == "Network.requestWillBeSent"
        ]
