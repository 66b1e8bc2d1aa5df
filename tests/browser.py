"""A headless Chromium for the tests of pages, through the W3C WebDriver protocol of its chromedriver.

``apt-get install chromium chromium-driver`` brings both on Debian; where they are not found the tests are skipped.
"""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Down": "\ue015", "Up": "\ue013", "Home": "\ue011", "End": "\ue010", "Enter": "\ue007", "Tab": "\ue004"}

DRIVER = shutil.which("chromedriver")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One session; `with Browser() as browser`."""

    def __init__(self, *, width=1280, height=800, dark=False):
        self.driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = next(line for line in self.driver.stdout if "successfully on port" in line)
        self.address = f"http://127.0.0.1:{line.rsplit('port ', 1)[1].strip().rstrip('.')}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"]
        arguments += ["--autoplay-policy=no-user-gesture-required", "--force-device-scale-factor=1"]
        arguments += ["--blink-settings=preferredColorScheme=" + ("0" if dark else "1")]
        options = {"binary": BROWSER, "args": arguments}
        logged = {"goog:loggingPrefs": {"browser": "ALL"}}
        try:
            capabilities = {"alwaysMatch": {"goog:chromeOptions": options, **logged}}
            self.path = ""
            self.path = f"/session/{self._call('POST', '/session', {'capabilities': capabilities})['sessionId']}"
            # the window's frame counts in --window-size
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        except BaseException:
            self._stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._call("DELETE", self.path)
        finally:
            self._stop()

    def _stop(self):
        self.driver.terminate()
        self.driver.wait()
        self.driver.stdout.close()

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, page):
        address = page.as_uri() if isinstance(page, Path) else page
        self._call("POST", f"{self.path}/url", {"url": address})

    def run(self, script, *arguments):
        """What a piece of JavaScript returns."""
        return self._call("POST", f"{self.path}/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command, parameters):
        return self._call("POST", f"{self.path}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def press(self, *keys):
        strokes = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self._actions({"type": "key", "id": "keyboard", "actions": strokes})

    def _element(self, selector):
        found = self._call("POST", f"{self.path}/element", {"using": "css selector", "value": selector})
        return found[_ELEMENT]

    def point(self, selector, *, click=False, x=0):
        """Move the pointer over an element, ``x`` pixels from its middle; and click."""
        origin = {_ELEMENT: self._element(selector)}
        moves = [{"type": "pointerMove", "duration": 0, "x": x, "y": 0, "origin": origin}]
        moves += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}] if click else []
        self._actions({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves})

    def type(self, selector, text):
        self._call("POST", f"{self.path}/element/{self._element(selector)}/value", {"text": text})

    def _actions(self, *inputs):
        self._call("POST", f"{self.path}/actions", {"actions": list(inputs)})

    def until(self, script, seconds=20):
        """Wait until a piece of JavaScript returns something true; gives it."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.05)
        return value

    def complaints(self):
        """The lines of the console since they were last asked for, such as what the page's policy refused."""
        return [entry["message"] for entry in self._call("POST", f"{self.path}/se/log", {"type": "browser"})]

    def picture(self, path):
        path.write_bytes(base64.b64decode(self._call("GET", f"{self.path}/screenshot")))
