"""Debian's Firefox, driven with WebDriver BiDi (https://www.w3.org/TR/webdriver-bidi/)."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from support.waiting import PATIENCE

FIREFOX = shutil.which("firefox-esr")
LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
PREFERENCES = """
user_pref("app.normandy.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("services.settings.server", "data:,#remote-settings-dummy/v1");
"""
# Keys that are not characters have code points of their own in WebDriver.
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "ArrowDown": "\ue015", "End": "\ue010"}
UNTIL = """
new Promise((resolve) => {
  const look = () => ((%s) ? resolve(true) : setTimeout(look, 20));
  look();
})
"""


class Firefox:
    """A tab of Firefox. It collects the errors of its pages in `errors`."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        self._id = 0
        self._context = ""
        self.errors = list[str]()

    async def begin(self) -> None:
        """Create the session, and use the tab that is open."""
        prompts = {"default": "accept", "beforeUnload": "accept"}
        await self.send("session.new", capabilities={"alwaysMatch": {"unhandledPromptBehavior": prompts}})
        await self.send("session.subscribe", events=["log.entryAdded"])
        self._context = (await self.send("browsingContext.getTree"))["contexts"][0]["context"]

    async def send(self, method: str, **params: Any) -> Any:
        """Send a command, and return its result."""
        self._id += 1
        await self._connection.send_message(json.dumps({"id": self._id, "method": method, "params": params}))
        while True:
            message = json.loads(await self._connection.get_message())
            if message["type"] == "event":
                entry = message["params"]
                if entry["level"] == "error":
                    self.errors.append(entry["text"])
            elif message["id"] == self._id:
                assert message["type"] == "success", message
                return message["result"]

    async def goto(self, url: str, expected: str = "true") -> None:
        """Open a page, and wait for a condition in it."""
        await self.send("browsingContext.navigate", context=self._context, url=url, wait="interactive")
        await self.until(expected)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, or of its promise: a text, a number, or something with a `sharedId`."""
        target = {"context": self._context}
        result = await self.send("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert result["type"] == "success", result
        return result["result"].get("value", result["result"])

    async def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        with trio.move_on_after(PATIENCE):
            await self.evaluate(UNTIL % condition)
            return
        raise AssertionError(f"{condition} did not become true in {await self.evaluate('document.body.innerText')}")

    async def press(self, *keys: str) -> None:
        """Press keys one after the other: characters, or names of KEYS."""
        actions = [{"type": type_, "value": KEYS.get(key, key)} for key in keys for type_ in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        await self.send("input.performActions", context=self._context, actions=[source])

    async def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a field."""
        target = {"context": self._context}
        expression = f"document.querySelector({selector!r})"
        found = await self.send("script.evaluate", expression=expression, target=target, awaitPromise=False)
        element = {"sharedId": found["result"]["sharedId"]}
        await self.send("input.setFiles", context=self._context, element=element, files=[str(one) for one in files])

    async def screenshot(self) -> bytes:
        """Return a picture of the visible part of the page, as PNG."""
        shot = await self.send("browsingContext.captureScreenshot", context=self._context)
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def firefox(profile: Path, preferences: str = "") -> AsyncIterator[Firefox]:
    """Run Firefox with a new profile."""
    assert FIREFOX is not None
    _write(profile, PREFERENCES + preferences)
    command = [FIREFOX, "--headless", "--no-remote", "--remote-debugging-port=0", "--profile", str(profile)]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        output = ""
        while not (found := LISTENING.search(output)):
            received = await process.stderr.receive_some()
            assert received, output
            output += received.decode()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_discard, process.stderr)
            async with open_websocket_url(f"{found[1]}/session", max_message_size=2**26) as connection:
                browser = Firefox(connection)
                await browser.begin()
                yield browser
                await browser.send("browser.close")
            nursery.cancel_scope.cancel()
        with trio.move_on_after(PATIENCE):
            await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _write(profile: Path, preferences: str) -> None:
    profile.mkdir()
    (profile / "user.js").write_text(preferences)


async def _discard(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass
