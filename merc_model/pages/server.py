"""A small server on this machine alone: a conversation is uploaded, and answered by its page.

It reads no file but what was uploaded, and keeps none. A page of another site can neither send to it (Origin) nor reach
it by a name of its own (Host).
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from merc_model.errors import UserError
from merc_model.pages.page import heading, page, plain

HOST = "127.0.0.1"
_UNPACKED = 16  # times the limit that an .npz may hold
_SECONDS = 30.0  # for which a silent sender is waited for


class Server(ThreadingHTTPServer):
    """Answers uploads; `serve_forever` starts it.

    Args:
        port: where on the loopback interface; 0 for a free one.
        title: of the page with the form.
        answer: a file and the name that the user gave it → its page; a UserError says what is wrong with it.
        kinds: suffixes of files that it takes.
        limit: bytes of an upload.
    """

    daemon_threads = True

    def __init__(
        self, port: int, title: str, answer: Callable[[Path, str], bytes], kinds: Sequence[str], limit: int
    ) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used: {getattr(error, 'strerror', None) or error}") from None
        self.title, self.kinds, self.limit = title, kinds, limit
        self.names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self._answer, self._one_at_a_time = answer, threading.Lock()

    def form(self, problem: str = "") -> bytes:
        """The page to upload from."""
        kinds = ", ".join(self.kinds)
        body = [
            heading(self.title),
            f'<main><p role="alert">{plain(problem)}</p>' if problem else "<main>",
            '<form method="post" action="/" enctype="multipart/form-data">',
            f"<p><label>A conversation ({kinds}, up to {self.limit / 2**20:g} MiB) ",
            f'<input type="file" name="file" accept="{",".join(self.kinds)}" required></label></p>',
            '<p><button type="submit">Predict</button></p></form></main>',
        ]
        return page(self.title, "\n".join(body), forms=True)

    def answer(self, name: str, content: bytes) -> bytes:
        """The page of an uploaded file."""
        suffix = Path(name).suffix.lower()
        if suffix not in self.kinds:
            raise UserError(f"{name or 'no file'}: expected a name that ends in {' or '.join(self.kinds)}")
        with self._one_at_a_time, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"upload{suffix}"  # the user's name is shown, and names no file
            path.write_bytes(content)
            try:
                self._check_unpacked(path)
                return self._answer(path, name)
            except UserError as error:
                raise UserError(str(error).replace(str(path), name)) from None

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def _check_unpacked(self, path: Path) -> None:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _UNPACKED * self.limit:
                raise UserError(f"{path}: holds {size:,} bytes, more than {_UNPACKED * self.limit:,}")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _SECONDS
    server_version = "merc"
    sys_version = ""

    def do_GET(self) -> None:
        if self._allowed():
            self._send(HTTPStatus.OK, self.server.form())

    def do_POST(self) -> None:
        if not self._allowed():
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if length < 0:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the upload does not say how long it is")
        elif length > self.server.limit:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the upload is over {self.server.limit:,} bytes")
        else:
            body = self.rfile.read(length)
            try:
                self._send(HTTPStatus.OK, self.server.answer(*_file(self.headers.get("Content-Type", ""), body)))
            except UserError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, " ".join(str(error).splitlines()))

    def _allowed(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in self.server.names or origin not in (None, f"http://{host}"):
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own page alone")
        elif self.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        self.close_connection = True  # what was not read is not taken for a request
        self._send(status, self.server.form(problem))

    def _send(self, status: HTTPStatus, data: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(data))),
            ("Content-Security-Policy", "frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what is uploaded is nobody else's business."""


def _file(kind: str, body: bytes) -> tuple[str, bytes]:
    """The name and the content of the one file of a form."""
    boundary = re.search(r'boundary="?([^";]+)', kind)
    if not kind.startswith("multipart/form-data") or boundary is None:
        raise UserError("expected the form of this page")
    for part in body.split(b"--" + boundary[1].encode("latin-1"))[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'filename="([^"]*)"', head)
        if name is not None:
            shown = re.split(r"[/\\]", name[1].decode(errors="replace"))[-1]
            return shown, content.removesuffix(b"\r\n")
    raise UserError("no file in the form")
