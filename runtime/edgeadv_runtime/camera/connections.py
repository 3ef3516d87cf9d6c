"""Connections of the page: a bounded number, each with a bounded time, so that whoever connects takes nothing from
capture.
"""

from __future__ import annotations

import io
import resource
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_CONNECTIONS = 64
"""At once; where the process may open few files, half of those that are left. One more is closed at once."""
REQUEST_S = 5.0
"""From the end of the last answer, or the beginning, until a request must be whole."""
STALL_S = 10.0
"""For so long a viewer may take nothing of what is sent: a network of telephones stands still for seconds."""
# about a picture: of a viewer that does not read, few are on their way before it shows
_SEND_BUFFER = 64 << 10


def places() -> int:
    """How many connections there may be at once."""
    import psutil

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    # a source opens files too, and must find room whoever connects
    left = most - int(psutil.Process().num_fds())
    return max(1, min(MOST_CONNECTIONS, left // 2))


class _Request(io.RawIOBase):
    """What a connection sends, until a moment by which all must have come.

    Attributes:
        end: the moment, by the monotonic clock.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.end = connection, 0.0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive into ``buffer``: a byte now and then gives no more time.

        Raises:
            TimeoutError: the moment has come.
        """
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(STALL_S)  # of what is sent


class _Answer(io.RawIOBase):
    """What is sent to a connection: each part that it takes gives it new time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Send all of ``data``.

        Raises:
            TimeoutError: nothing was taken for :data:`STALL_S`.
        """
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self._connection.send(rest) :]
        return memoryview(data).nbytes


class TimedHandler(BaseHTTPRequestHandler):
    """One request, which must be whole in time; so must what is sent be taken."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Begin with a connection."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().setup()
        self._request = _Request(self.connection)
        self.rfile = io.BufferedReader(self._request)
        self.wfile = _Answer(self.connection)  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        """One request, which must be whole in time."""
        self._request.end = time.monotonic() + REQUEST_S
        super().handle_one_request()


class BoundedServer(ThreadingHTTPServer):
    """A thread for each connection, of which there is a bounded number."""

    daemon_threads = True
    block_on_close = False
    # with the 5 of the standard library a few idle connections make others wait for seconds
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[TimedHandler]) -> None:
        """Listen.

        Args:
            address: an IPv4 or IPv6 one, and a port; 0 takes a free one.
            handler: of a request.

        Raises:
            OSError: the port is taken, or not allowed.
        """
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)
        self._places = threading.BoundedSemaphore(places())

    def get_request(self) -> Any:
        """The next connection; not again and again at once where there is no descriptor for it."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, if there is a place."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread for it
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """All requests of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that left is no error worth a traceback on the terminal."""
