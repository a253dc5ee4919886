"""A proxy between a client and a store that refuses, resets, truncates, delays and throttles answers."""

import random
import re
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

RIGHT = "right"
KINDS = ("refused", "reset", "truncated", "slow", "throttled")
PIECES = 10
"""In which a throttled answer comes."""
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FaultyProxy:
    """Passes requests on unchanged to `upstream` (host, port), and answers unless a fault is drawn.

    shares: of the requests, by fault. refused: the connection ends without an answer, or the answer is 503. reset: the
    connection breaks amid the body. truncated: it ends in order amid the body. slow: it stays silent for `slow_seconds`
    before the answer. throttled: the body takes so long to come, piece by piece. `met` counts the faults. `upstream`
    and `shares` may be changed at any time.
    """

    def __init__(self, upstream: tuple[str, int], shares: Mapping[str, float], slow_seconds: float) -> None:
        self.upstream = upstream
        self.shares = shares
        self.slow_seconds = slow_seconds
        self.met: Counter[str] = Counter()
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=True)
        self._server.daemon_threads = True
        self._server.block_on_close = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _draw(self) -> str:
        with self._lock:
            weights = [*self.shares.values(), 1 - sum(self.shares.values())]
            [kind] = self._random.choices([*self.shares, RIGHT], weights)
            self.met[kind] += 1
            return kind

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    while self._answer():
                        pass
                except OSError:
                    pass

            def _answer(self) -> bool:
                """Handles one request of the connection; whether another may follow."""
                request = _head(self.rfile)
                if not request:
                    return False
                kind = proxy._draw()
                if re.search(rb"\r\nexpect: *100-continue", request.lower()):
                    request = re.sub(rb"(?i)\r\nexpect: *100-continue", b"", request)
                    if kind != "refused":
                        self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                if kind == "refused":
                    if proxy.met[kind] % 2:
                        self.connection.sendall(BUSY)
                    else:
                        _break(self.connection)
                    return False
                if kind == "slow":
                    time.sleep(proxy.slow_seconds)
                with socket.create_connection(proxy.upstream) as upstream:
                    upstream.sendall(request + self.rfile.read(_length(request)))
                    answer = upstream.makefile("rb")
                    head = _head(answer)
                    body = b"" if request.startswith(b"HEAD ") else answer.read(_length(head))
                if kind in ("reset", "truncated") and len(body) > 1:
                    self.connection.sendall(head + body[: len(body) // 2])
                    if kind == "reset":
                        time.sleep(0.01)
                        _break(self.connection)
                    return False
                if kind != "throttled":
                    self.connection.sendall(head + body)
                    return True
                self.connection.sendall(head)
                size = -(-len(body) // PIECES)
                for start in range(0, len(body), size or 1):
                    time.sleep(proxy.slow_seconds / PIECES)
                    self.connection.sendall(body[start : start + size])
                return True

        return Handler


def _head(file: Any) -> bytes:
    """A request or an answer up to the empty line."""
    lines: list[bytes] = []
    while line := file.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _length(head: bytes) -> int:
    """Bytes of the body that follows."""
    found = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    return int(found[1]) if found else 0


def _break(connection: socket.socket) -> None:
    """A reset instead of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class WebServer:
    """Serves the files of a folder over HTTP, with ranges or without. authorizations: what requests came with. asked:
    first and last byte of ranges. certificate: a .pem with its key, for HTTPS. statuses: what paths get in place of
    their file, such as 403; may be changed at any time."""

    def __init__(self, folder: str, ranges: bool, certificate: Path | None = None) -> None:
        web = self
        self.up = True
        self.authorizations: list[str | None] = []
        self.asked: list[tuple[int, int]] = []
        self.statuses: dict[str, int] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                if not web.up:
                    self.close_connection = True
                    return
                web.authorizations.append(self.headers.get("Authorization"))
                if self.path in web.statuses:
                    self._send(web.statuses[self.path], b"", 0)
                    return
                path = Path(folder, self.path.lstrip("/").partition("?")[0])
                if not path.is_file():
                    self._send(404, b"", 0)
                    return
                size = path.stat().st_size
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted:
                    web.asked.append((int(wanted[1]), int(wanted[2])))
                if not ranges or not wanted:
                    self._send(200, path.read_bytes(), size)
                elif int(wanted[1]) >= size:
                    self._send(416, b"", size)
                else:
                    with path.open("rb") as file:
                        file.seek(int(wanted[1]))
                        self._send(206, file.read(int(wanted[2]) + 1 - int(wanted[1])), size)

            def _send(self, status: int, data: bytes, size: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._server.block_on_close = False

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.server_address[1]

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def __enter__(self) -> "WebServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.up = False  # for connections that clients keep
        self._server.shutdown()
        self._server.server_close()
