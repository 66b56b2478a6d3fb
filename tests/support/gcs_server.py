"""A server on loopback that gcsfs takes for Google's store: that of gcp-storage-emulator, which here knows who asks
and which generation of an object is asked for, and misbehaves as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "verysecrettoken"  # noqa: S105 - nobody's


@dataclass
class Google:
    """The server: `fault` is asked before every answer (the handler, the method, the path), and says True where it
    has answered itself; `asked` are the methods, addresses and ranges of all requests."""

    url: str = ""
    fault: Callable[[Any, str, str], bool] = lambda handler, method, path: False
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def log_in(self, file: Path) -> str:
        """Write the key of a service account, for GOOGLE_APPLICATION_CREDENTIALS: its secret part."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        how = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        text = key.private_bytes(serialization.Encoding.PEM, *how).decode()
        account = {
            "type": "service_account",
            "project_id": "some-project",
            "private_key_id": "1",
            "private_key": text,
            "client_email": "who@some-project.example",
            "token_uri": f"{self.url}/token",
        }
        file.write_text(json.dumps(account))
        return text.splitlines()[1]


def say(handler: Any, code: int, what: Any) -> None:
    """Answer with a document."""
    content = json.dumps(what).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def refuse(handler: Any, code: int) -> None:
    """Answer that it cannot be."""
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    say(handler, code, {"error": {"code": code, "message": "No such thing"}})


def _handlers(said: Google, storage: Any) -> type[Any]:
    from gcp_storage_emulator.server import RequestHandler

    def stopped(handler: Any) -> bool:
        """Whether a request is answered here."""
        method, path, headers = handler.command, handler.path, handler.headers
        if path == "/token":
            say(handler, 200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
            return True
        said.asked.append((method, path, headers.get("Range") or headers.get("Content-Range", "")))
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            refuse(handler, 401)
            return True
        if said.fault(handler, method, path):
            return True
        address = urlsplit(path)
        (wanted,) = parse_qs(address.query).get("generation", [""])
        bucket, _, name = address.path.partition("/b/")[2].partition("/o/")
        if wanted and storage.get_file_obj(bucket, unquote(name))["generation"] != wanted:
            refuse(handler, 404)
            return True
        return False

    class Handler(RequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            with suppress(OSError):  # who asked went away
                super().handle()

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            self.close_connection = True
            if self.raw_requestline and self.parse_request() and not stopped(self):
                getattr(self, f"do_{self.command}")()
                self.wfile.flush()

    return Handler


@contextmanager
def google() -> Iterator[Google]:
    """A server without buckets, and with nobody logged in."""
    from gcp_storage_emulator.storage import Storage

    storage, said = Storage(use_memory_fs=True), Google()
    server = HTTPServer(("127.0.0.1", 0), partial(_handlers(said, storage), storage))
    said.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield said
    server.shutdown()
    server.server_close()
    thread.join()
