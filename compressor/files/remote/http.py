"""Files on web servers: requests for ranges of bytes, whose every answer is held against what was asked.

Redirects are followed, but credentials go to the first host only, and never from https to http. What an answer says
of its range, its length and its version has to be what the first one said: a server that sends the whole file, or
another version of it, is an error. Failures that may pass are tried again from where they came.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from compressor.core.errors import InputError
from compressor.core.text import printable, without_secrets
from compressor.core.version import __version__
from compressor.files.remote.trying import Passing, tried

TIMEOUT = 60.0  # seconds without a byte
_REDIRECTS = 10
_IDLE = 16  # connections that are kept open for each server
_PIECE = 1 << 18
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MOVED = {301, 302, 303, 307, 308}
_CHANGED = "Run again when nothing writes to it"

Headers = Mapping[str, str]
NotThere = (404, 410)


class Refused(InputError):
    """A server answers with a status that says no. `status` is that."""

    def __init__(self, status: int, path: str) -> None:
        reason, remedy = _refusal(status)
        super().__init__(reason, file=path, remedy=remedy)
        self.status = status


def _refusal(status: int) -> tuple[str, str]:
    if status in (401, 403):
        return f"may not be read: the server answers {status}", "Log in there, or ask for access"
    if status in NotThere:
        return f"is not there: the server answers {status}", "Look at the address again"
    if status == 416:
        return "ends before what was asked of it: the server answers 416", _CHANGED
    if status == 412:
        return "was changed while it was read", _CHANGED
    return f"cannot be fetched: the server answers {status}", "Look at the address again"


@dataclass
class WebFile:
    """A file at a URL, as it was when first seen. `credentials` makes the headers for the URL's own host; `pinned`:
    the URL names one version for good, so that nobody compares the tags of the servers that redirects lead to."""

    url: str
    path: str
    size: int = -1
    tag: str = ""
    credentials: Callable[[], Headers] | None = None
    pinned: bool = False
    leads: str = ""  # where redirects led the last time

    def __getstate__(self) -> dict[str, object]:
        """For a process elsewhere: the secrets of a URL stay here."""
        if without_secrets(self.url) != self.url:
            raise InputError(
                "its address holds a secret, which is sent to no other machine",
                file=self.path,
                remedy="Leave --scheduler out",
            )
        return {**self.__dict__, "leads": ""}

    def look(self) -> None:
        """Learn size and version. InputError where the file cannot be read by ranges."""
        self.size, self.tag = self._seen()

    def check_unchanged(self) -> None:
        """InputError if the file was replaced since it was first seen."""
        if not self.pinned and self._seen() != (self.size, self.tag):
            raise self._changed()

    def fetch_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset. InputError if that cannot be, or the file was changed."""
        done = 0

        def fetch() -> None:
            nonlocal done
            with self._asked(offset + done, offset + len(buffer)) as answer:
                self._check(answer, offset + done, offset + len(buffer))
                while done < len(buffer):
                    got = _read(answer, buffer[done : done + _PIECE])
                    if not got:
                        raise Passing(f"its body ended {len(buffer) - done} bytes early")
                    done += got
                if answer.length is None and _read(answer, memoryview(bytearray(1))):
                    raise self._other("sends more bytes than were asked for")

        if len(buffer):
            tried(fetch, self.path, lambda: done)

    def _seen(self) -> tuple[int, str]:
        def look() -> tuple[int, str]:
            with self._asked(0, 1) as answer:
                said = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if answer.status == 416 and said is not None and said[3] == "0":
                    return 0, _tag(answer)
                if answer.status == 416:
                    raise Refused(416, self.path)
                if answer.status != 206 or said is None or said[3] == "*":
                    raise self._unranged()
                if said[1] != "0" or said[2] != "0":
                    raise self._other("answers with another range than was asked for")
                return int(said[3]), _tag(answer)

        return tried(look, self.path)

    def _check(self, answer: http.client.HTTPResponse, start: int, stop: int) -> None:
        """Hold an answer against what was asked."""
        if answer.status == 416:
            raise Refused(416, self.path)
        whole = answer.status == 200 and start == 0 and stop == self.size and answer.length == self.size
        if answer.status != 206 and not whole:
            raise self._unranged()
        said = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if not whole:
            if said is None or said[1] is None or (int(said[1]), int(said[2])) != (start, stop - 1):
                raise self._other("answers with another range than was asked for")
            if said[3] != "*" and int(said[3]) != self.size:
                raise self._changed()
        if answer.length is not None and answer.length != stop - start:
            raise self._other(f"says that a range of {stop - start} bytes has {answer.length}")
        if not self.pinned and _tag(answer) != self.tag:
            raise self._changed()

    @contextmanager
    def _asked(self, start: int, stop: int) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request for a range, from wherever redirects lead; they are followed anew when what they
        led to is no longer there, for it may have been signed for a while."""
        headers = {
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"compressor/{__version__}",
        }
        with ExitStack() as stack:
            try:
                answer = self._followed(self.leads or self.url, headers, stack)
            except Refused:
                if not self.leads:
                    raise
                self.leads = ""
                answer = self._followed(self.url, headers, stack)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise self._other("sends it compressed")
            yield answer

    def _followed(self, url: str, headers: Headers, stack: ExitStack) -> http.client.HTTPResponse:
        """The answer that redirects from a URL lead to, open until the stack is left."""
        own = urlsplit(self.url)
        for _ in range(_REDIRECTS):
            place = urlsplit(url)
            secret: dict[str, str] = {}
            if _server(place) == _server(own):
                secret = {**_basic(own), **(self.credentials() if self.credentials else {})}
            answer = stack.enter_context(_exchange(place, {**headers, **secret}))
            if answer.status in _MOVED and answer.headers.get("Location"):
                url = self._moved(url, answer.headers["Location"])
                if answer.length is not None and answer.length <= _PIECE:
                    _read(answer, memoryview(bytearray(_PIECE)))  # then the connection can be used again
                stack.close()
                continue
            if answer.status in _PASSING:
                raise Passing(f"the server answers {answer.status}", _after(answer))
            if answer.status not in (200, 206, 416):
                raise Refused(answer.status, self.path)
            self.leads = "" if url == self.url else url
            return answer
        raise self._other(f"redirects more than {_REDIRECTS} times")

    def _moved(self, url: str, location: str) -> str:
        moved = urljoin(url, location)
        there = urlsplit(moved)
        if there.scheme not in ("http", "https") or not there.hostname:
            raise self._other("redirects to what is no web server")
        if urlsplit(url).scheme == "https" and there.scheme == "http":
            raise self._other("redirects from https to http")
        return moved

    def _unranged(self) -> InputError:
        return InputError(
            "its server does not serve ranges of bytes", file=self.path, remedy="Download it, and give the file"
        )

    def _other(self, what: str) -> InputError:
        return InputError(f"its server {what}", file=self.path, remedy="Download it, and give the file")

    def _changed(self) -> InputError:
        return InputError("was changed while it was read", file=self.path, remedy=_CHANGED)


def _tag(answer: http.client.HTTPResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _after(answer: http.client.HTTPResponse) -> float | None:
    """The seconds that a server asks to be left alone; dates are not looked at."""
    with suppress(ValueError):
        return float(int(answer.headers.get("Retry-After", "")))
    return None


def _basic(place: SplitResult) -> Headers:
    """The user and password that a URL holds."""
    if place.username is None:
        return {}
    pair = f"{unquote(place.username)}:{unquote(place.password or '')}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _read(answer: http.client.HTTPResponse, buffer: memoryview) -> int:
    with _passing():
        return answer.readinto(buffer)


# ---- connections ---------------------------------------------------------------------------------------


@dataclass
class _Server:
    """One server, by `key`, with its idle connections."""

    scheme: str
    host: str
    port: int
    idle: deque[http.client.HTTPConnection] = field(default_factory=lambda: deque(maxlen=_IDLE))


def _server(place: SplitResult) -> tuple[str, str, int]:
    return place.scheme, place.hostname or "", place.port or (443 if place.scheme == "https" else 80)


@cache
def _pool(scheme: str, host: str, port: int) -> _Server:
    return _Server(scheme, host, port)


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextmanager
def _passing() -> Iterator[None]:
    """What a connection may fail with, as what may pass; a host or certificate that is none as InputError."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"the server's certificate is not valid: {printable(error.verify_message, 100)}"
        ) from error
    except socket.gaierror as error:
        raise InputError(f"the server is not known: {printable(str(error.strerror or error), 100)}") from error
    except TimeoutError as error:
        raise Passing(f"nothing came for {TIMEOUT:.0f} seconds") from error
    except http.client.IncompleteRead as error:
        raise Passing("the connection was closed early") from error
    except (OSError, http.client.HTTPException) as error:
        raise Passing(f"the connection failed ({type(error).__name__})") from error


@contextmanager
def _exchange(place: SplitResult, headers: Headers) -> Iterator[http.client.HTTPResponse]:
    """Send a request, and keep the connection where its answer was read to the end."""
    pool = _pool(*_server(place))
    target = place.path or "/"
    target += f"?{place.query}" if place.query else ""
    proxy = _proxy(place)
    if proxy is not None and place.scheme == "http":
        target = f"http://{_host(place)}{target}"
        headers = {**headers, **_by_proxy(proxy)}
    headers = {**headers, "Host": _host(place)}
    with _passing():
        connection, answer = _answered(pool, place, target, headers)
    try:
        yield answer
    except BaseException:
        connection.close()
        raise
    if answer.isclosed():
        pool.idle.append(connection)
    else:
        connection.close()


def _answered(
    pool: _Server, place: SplitResult, target: str, headers: Headers
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A connection with the answer to a request: an idle one, or where the server has closed that, a new one."""
    while True:
        try:
            connection, used = pool.idle.pop(), True
        except IndexError:
            connection, used = _connection(place), False
        try:
            connection.request("GET", target, headers=dict(headers))
            return connection, connection.getresponse()
        except BaseException as error:
            connection.close()
            if not used or not isinstance(error, OSError | http.client.HTTPException):
                raise


def _connection(place: SplitResult) -> http.client.HTTPConnection:
    scheme, host, port = _server(place)
    proxy = _proxy(place)
    if scheme == "https":
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=_context())
        through = http.client.HTTPSConnection(
            proxy.hostname or "", proxy.port or 8080, timeout=TIMEOUT, context=_context()
        )
        through.set_tunnel(host, port, headers=dict(_by_proxy(proxy)))
        return through
    if proxy is None:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    return http.client.HTTPConnection(proxy.hostname or "", proxy.port or 8080, timeout=TIMEOUT)


def _host(place: SplitResult) -> str:
    return place.netloc.rpartition("@")[2]


def _proxy(place: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL."""
    named = getproxies().get(place.scheme)
    if not named or proxy_bypass(place.hostname or ""):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def _by_proxy(proxy: SplitResult) -> Headers:
    return {f"Proxy-{name}": value for name, value in _basic(proxy).items()}
