"""A real browser for tests: headless Chromium, driven by its own DevTools protocol over one WebSocket."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9)}


def found():
    """Path of a browser on this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own, whose profile lies in ``profile``."""

    def __init__(self, profile, *, size=(1280, 860), language="en-US", mobile=False):
        self.profile = Path(profile)
        self.process = subprocess.Popen(
            [
                found(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0",
                f"--lang={language}", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = self._port()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = json.load(answer)
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = connect(address, max_size=None)
        self.numbers = itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setLocaleOverride", locale=language)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=size[0], height=size[1], deviceScaleFactor=2 if mobile else 1, mobile=mobile,
        )  # fmt: skip
        self.send("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)

    def _port(self):
        path = self.profile / "DevToolsActivePort"
        for _ in range(600):
            if path.exists() and (lines := path.read_text().splitlines()):
                return int(lines[0])
            assert self.process.poll() is None, "the browser has ended"
            time.sleep(0.05)
        raise AssertionError("the browser does not answer")

    def send(self, method, **params):
        """Call a method of the protocol; its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, url):
        """Load a page."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script, seconds=30):
        """Until an expression is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"still not: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def click(self, selector):
        """Press the left button in the middle of an element, as a person does."""
        place = self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            " return b.width ? [b.x + b.width / 2, b.y + b.height / 2] : null })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, text):
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key, modifiers=0):
        """Press a key by name; ``modifiers`` 8 is shift."""
        text, code = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def text(self, selector):
        """The text of an element, "" when it is not there."""
        return self.run(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''")

    def picture(self, path):
        """Write a PNG of the page."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def requests(self):
        """Addresses that the page asked for."""
        sent = (e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def complaints(self):
        """Errors of scripts and of the page's policy."""
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        return [*thrown, *(entry for entry in logged if entry["level"] == "error")]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=20)
