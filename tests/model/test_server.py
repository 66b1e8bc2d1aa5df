"""The server of ``merc serve``: what it answers, and what it refuses."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.errors import UserError
from merc_model.pages.server import HOST, Server
from tests.browser import BROWSER, DRIVER, Browser
from tests.model.command import failure

LIMIT = 10_000


def echo(path: Path, name: str) -> bytes:
    if path.read_bytes() == b"bad":
        raise UserError(f"{path}: is <b>bad</b>")
    return f"<p>{name}: {len(path.read_bytes())}</p>".encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(0, "merc: <run>", echo, (".npz", ".json"), LIMIT) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: Server, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def upload(server: Server, name: str, content: bytes, **headers: str) -> tuple[int, str]:
    body = b'--X\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=X"}
    return ask(server, "POST", "/", body + content + b"\r\n--X--\r\n", **kind, **headers)


def test_the_form_and_an_answer(server: Server) -> None:
    status, text = ask(server)
    assert status == 200
    assert "merc: &lt;run&gt;" in text
    assert "form-action 'self'" in text
    content = bytes(range(256)) + b"\r\n\r\n--Y\r\n"
    assert upload(server, "talk.npz", content) == (200, f"<p>talk.npz: {len(content)}</p>")
    assert upload(server, "C:\\a\\..\\talk.npz", b"1", Origin=f"http://{HOST}:{server.server_port}")[0] == 200
    assert upload(server, "../../etc/passwd.npz", b"1")[1] == "<p>passwd.npz: 1</p>"


def test_what_is_wrong_is_one_line(server: Server) -> None:
    status, text = upload(server, "talk.json", b"bad")
    assert status == 400
    assert "talk.json: is &lt;b&gt;bad&lt;/b&gt;" in text
    assert "expected a name that ends in .npz or .json" in upload(server, "talk.exe", b"1")[1]
    assert (
        "no file in the form"
        in ask(server, "POST", body=b"--X\r\n\r\n--X--", **{"Content-Type": "multipart/form-data; boundary=X"})[1]
    )
    assert "expected the form of this page" in ask(server, "POST", body=b"{}", **{"Content-Type": "text/plain"})[1]
    packed = io.BytesIO()
    np.savez_compressed(packed, text=np.zeros((2000, 100)))
    assert "more than 160,000" in upload(server, "bomb.npz", packed.getvalue())[1]


def test_an_upload_over_the_limit_is_not_read(server: Server) -> None:
    assert ask(server, "POST", **{"Content-Length": str(LIMIT + 1)})[0] == 413
    assert ask(server, "POST", **{"Content-Length": "-1"})[0] == 411
    assert ask(server, "POST", **{"Transfer-Encoding": "chunked"})[0] == 411


def test_nothing_else_is_served(server: Server) -> None:
    for path in ("/../../etc/passwd", "/%2e%2e/config.json", "/index.html", "/?x"):
        assert ask(server, path=path)[0] == 404


def test_other_sites_are_refused(server: Server) -> None:
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200
    for host in ("example.org", f"example.org:{server.server_port}", HOST):
        assert ask(server, Host=host)[0] == 403
    for origin in ("http://example.org", "null", f"https://{HOST}:{server.server_port}", f"http://{HOST}:1"):
        assert upload(server, "talk.npz", b"1", Origin=origin)[0] == 403


def test_options(finished: Path, server: Server, capsys: Any) -> None:
    assert "--port" in failure(["serve", str(finished), "--port", str(server.server_port)], capsys)
    assert "--port" in failure(["serve", str(finished), "--port", "70000"], capsys)
    assert "--limit" in failure(["serve", str(finished), "--limit", "0"], capsys)


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (tests/browser.py)")
def test_a_conversation_in_a_browser(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """``merc serve`` itself, in a thread: the form, then the page."""
    made: list[Server] = []
    serve = Server.serve_forever

    def kept(self: Server, *arguments: Any) -> None:
        made.append(self)
        serve(self, 0.05)

    monkeypatch.setattr(Server, "serve_forever", kept)
    values = {"text": [[0.0] * 8] * 3, "transcript": ["so", "<b>it</b>", "goes"], "speakers": ["Ann", "Bob", "Ann"]}
    (tmp_path / "talk.json").write_text(json.dumps(values))
    (tmp_path / "wrong.json").write_text("{")
    thread = threading.Thread(target=main, args=(["serve", str(finished), "--port", "0"],))
    thread.start()
    try:
        with Browser() as browser:
            while not made:
                assert thread.is_alive()
            browser.open(f"http://{HOST}:{made[0].server_port}/")
            browser.type("input[type=file]", str(tmp_path / "wrong.json"))
            browser.point("button[type=submit]", click=True)
            browser.until("return document.querySelector('[role=alert]')?.textContent === 'wrong.json: not valid JSON'")
            browser.complaints()  # of the answer 400
            browser.type("input[type=file]", str(tmp_path / "talk.json"))
            browser.point("button[type=submit]", click=True)
            browser.until("return document.querySelectorAll('#talk li').length === 3")
            assert browser.run("return u2.textContent").startswith("2Bob<b>it</b>")
            assert browser.complaints() == []
    finally:
        made[0].shutdown()
        thread.join()
