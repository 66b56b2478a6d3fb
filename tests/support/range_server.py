"""A web server on loopback that serves ranges of files, and misbehaves as it is told to."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Read = Callable[[int, int], bytes]


@dataclass
class Files:
    """What is served: `contents` by path, each its size and what reads a range of it; `fault` is asked before every
    answer (the handler, the path, the number of the request), and says True where it has answered itself."""

    contents: dict[str, tuple[int, Read]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    fault: Callable[[Any, str, int], bool] = lambda handler, path, number: False
    change: Callable[[Any, str, str, bytes], None] = lambda handler, method, path, body: handler.status(405)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and range
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def put(self, path: str, content: bytes) -> None:
        self.contents[path] = len(content), lambda start, stop: content[start:stop]
        self.tags[path] = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def put_folder(self, place: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Files

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # who asked went away
            super().handle()

    def do_GET(self) -> None:
        files, path = self.files, unquote(urlsplit(self.path).path)
        files.asked.append((path, self.headers.get("Range", "")))
        files.headers.append(dict(self.headers))
        if not files.fault(self, path, len(files.asked)):
            self.answer(path)

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path not in self.files.contents:
            self.status(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.files.contents[path][0]))
        self.send_header("ETag", self.files.tags[path])
        self.end_headers()

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:  # who sent it was stopped
            self.close_connection = True
            return
        self.files.change(self, self.command, unquote(urlsplit(self.path).path), body)

    do_PUT = do_DELETE = do_POST  # noqa: N815 - as the base class calls them

    def answer(self, path: str, *, drop: int | None = None, **changed: str) -> None:
        """Serve a range; `drop` the connection after so many bytes, with some headers `changed`."""
        if path not in self.files.contents:
            self.status(404)
            return
        size, read = self.files.contents[path]
        said = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, size
        if said:
            start, stop = int(said[1]), min(int(said[2] or size) + 1, size)
        if said and start >= size:
            self.status(416, **{"Content-Range": f"bytes */{size}"})
            return
        body = read(start, stop)
        headers = {"ETag": self.files.tags[path], "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
        if said:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        self.send_response(206 if said else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if drop is not None:
            self.wfile.write(body[:drop])
            self.close_connection = True
            return
        self.files.sent += len(body)
        self.wfile.write(body)

    def status(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


@contextmanager
def served(**fields: Any) -> Iterator[Files]:
    """Serve files on loopback; their `url` has no slash at its end."""
    files = Files(**fields)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": files}))
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
