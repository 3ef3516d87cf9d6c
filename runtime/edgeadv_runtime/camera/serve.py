"""A small page with the live picture, labels, latency and drops, by the standard library's own server.

It listens on this machine only, unless it is given a token: then every request must carry it. A page of another site
cannot use it: the host must be one of this server's names, and what changes something must come from the page itself.
"""

from __future__ import annotations

import hmac
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from importlib import resources
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, StorageError
from ..records.eps import SEVERITIES
from .connections import BoundedServer, TimedHandler

LEAST_TOKEN = 16
_COOKIE = "edgeadv_token"
_PAGES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_BOUNDARY = "frame"
_PICTURES_PER_S = 15.0
# each viewer costs a thread and its own compression of every picture, beside the model
MOST_VIEWERS = 8
_QUALITY = 85
_MOST_BYTES = 1000
_LEAST_SIDE = 224


@dataclass(frozen=True)
class Chosen:
    """What the page asks to be done to each frame.

    Attributes:
        patch: row and column of the patch's middle, as shares of the picture; None is no patch.
        corruption: its name; None is none.
        severity: of the corruption.
    """

    patch: tuple[float, float] | None = None
    corruption: str | None = None
    severity: int = 3

    def changed(self, asked: Any, *, patch: bool, corruptions: Sequence[str]) -> Chosen:
        """With what a page asked for.

        Args:
            asked: a JSON value.
            patch: whether there is a patch.
            corruptions: those that may be asked for.

        Raises:
            ValueError: it is something else than a change of these.
        """
        if not isinstance(asked, dict) or not asked or not set(asked) <= {"patch", "corruption", "severity"}:
            raise ValueError("no change of these")
        place, kind, severity = (asked.get(name, getattr(self, name)) for name in ("patch", "corruption", "severity"))
        if place is not None:
            row, column = map(_share, place)
            place = (row, column)
        if (place is not None and not patch) or (kind is not None and kind not in corruptions):
            raise ValueError("not offered")
        if type(severity) is not int or not 1 <= severity <= SEVERITIES:
            raise ValueError("no severity")
        return Chosen(place, kind, severity)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is not in [0, 1]")
    return float(value)


class View:
    """What the page shows: the application writes it, the server reads it.

    Attributes:
        strength: of the demonstration's perturbation, in [0, 1]; the page's slider sets it.
        chosen: what else is done to each frame; the page sets it.
        status: how the source is, in words; the application sets it.
        closed: whether :meth:`close` was called.
        figures: gives what is added to each state when it is asked for, such as counts; the application sets it.
    """

    def __init__(
        self, *, title: str, eps: str | None, patch: str | None = None, corruptions: Sequence[str] = ()
    ) -> None:
        """Begin without a picture.

        Args:
            title: of the page.
            eps: budget of the stored perturbation, None if there is none and so no slider.
            patch: area of the stored patch, None if there is none.
            corruptions: kinds that the page offers.
        """
        self.title: str = title
        self.eps: str | None = eps
        self.patch: str | None = patch
        self.corruptions: tuple[str, ...] = tuple(corruptions)
        self.strength: float = 0.0
        self.chosen: Chosen = Chosen()
        self._changed = threading.Condition()
        self._pixels: NDArray[np.uint8] | None = None
        self._state: dict[str, Any] = {}
        self._number = 0
        self._shown_at = 0.0
        self.closed = False
        self.status = "waiting for the first frame"
        self.figures: Callable[[], dict[str, Any]] = dict

    def show(self, pixels: NDArray[np.uint8], state: dict[str, Any]) -> None:
        """The picture that the model saw, uint8 (H, W, 3) RGB or (H, W, 1), and a JSON object about it."""
        with self._changed:
            self._pixels, self._state = pixels, state
            self._number, self._shown_at = self._number + 1, time.monotonic()
            self._changed.notify_all()

    def state(self) -> dict[str, Any]:
        """A JSON object about the last picture, and the figures of this moment."""
        figures = self.figures()
        with self._changed:
            return {
                "title": self.title,
                "status": self.status,
                "picture_age_s": round(time.monotonic() - self._shown_at, 1) if self._number else None,
                "eps": self.eps,
                "strength": self.strength,
                "patch": self.patch,
                "corruptions": self.corruptions,
                "chosen": asdict(self.chosen),
                "number": self._number,
                **self._state,
                **figures,
            }

    def picture(self, after: int, timeout_s: float) -> tuple[int, bytes] | None:
        """The newest picture as JPEG and its number, once there is one after ``after``; None if none came, or the
        end."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self.closed, timeout_s)
            if self.closed or self._number <= after or self._pixels is None:
                return None
            number, pixels = self._number, self._pixels
        stream = io.BytesIO()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if image.width < _LEAST_SIDE:
            # JPEG would blur what a small model sees
            factor = -(-_LEAST_SIDE // image.width)
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        image.save(stream, "JPEG", quality=_QUALITY)
        return number, stream.getvalue()

    def close(self) -> None:
        """Let everybody go who waits for a picture."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def parse_address(text: str) -> tuple[str, int]:
    """Read ``127.0.0.1:8080`` or ``[::1]:8080``.

    Raises:
        InputError: it is not an address with a port.
    """
    host, _, port = text.rpartition(":")
    try:
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError(port)
        return str(ip_address(host.strip("[]"))), int(port)
    except ValueError as error:
        raise InputError(f"`serve` {text!r} is not an address and a port such as 127.0.0.1:8080") from error


class PageServer:
    """The page, served in threads of its own; a context manager."""

    def __init__(self, view: View, address: str, *, token: str | None = None) -> None:
        """Listen at ``address``.

        Args:
            view: what to show.
            address: e.g. ``127.0.0.1:8080``; port 0 takes a free one.
            token: what every request must carry; needed for any address but a loopback one.

        Raises:
            InputError: the address is wrong, or open to others without a token.
            StorageError: the port is taken, or not allowed.
        """
        host, port = parse_address(address)
        if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isalnum()):
            raise InputError(f"a token has at least {LEAST_TOKEN} letters and digits")
        if not ip_address(host).is_loopback and token is None:
            raise InputError(
                f"`serve` {address} can be reached from other machines: give it a `token` of {LEAST_TOKEN} letters "
                "and digits "
                "or more, or serve on 127.0.0.1"
            )
        known = {
            "view": view,
            "token": token,
            "own_names_only": ip_address(host).is_loopback,
            "viewers": threading.BoundedSemaphore(MOST_VIEWERS),
        }
        handler = type("Handler", (_Handler,), known)
        try:
            self._server = BoundedServer((host, port), handler)
        except OSError as error:
            raise StorageError(f"cannot serve on {address}: {error.strerror}; choose another port") from error
        self._view = view
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="edgeadv-page", daemon=True
        )
        shown = f"[{host}]" if ":" in host else host
        self.url: str = f"http://{shown}:{self._server.server_address[1]}/" + (f"?token={token}" if token else "")

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._view.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(TimedHandler):
    """One request; :class:`PageServer` sets what the server knows."""

    view: View
    token: str | None
    own_names_only: bool
    viewers: threading.BoundedSemaphore

    def do_GET(self) -> None:  # noqa: N802
        path = self._admitted()
        if path is None:
            return
        if path in _PAGES:
            name, kind = _PAGES[path]
            content = resources.files(__package__).joinpath("page", name).read_bytes()
            self._answer(content, f"{kind}; charset=utf-8")
        elif path == "/state":
            self._answer(json.dumps(self.view.state()).encode(), "application/json")
        elif path == "/stream.mjpg":
            if not self.viewers.acquire(blocking=False):
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_VIEWERS} viewers are here already: close one")
                return
            try:
                self._pictures()
            finally:
                self.viewers.release()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:  # noqa: N802
        path = self._admitted()
        if path is None:
            return
        # a form of another site can send neither this type nor this header
        if self.headers.get("Content-Type") != "application/json" or self.headers.get("X-Edgeadv") != "1":
            self._refuse(HTTPStatus.FORBIDDEN, "only the page itself may do that")
            return
        try:
            size = int(self.headers.get("Content-Length", ""))
            if not 0 <= size <= _MOST_BYTES:
                raise ValueError
            self._set(path, size)
        except (ValueError, KeyError, TypeError):
            self._refuse(HTTPStatus.BAD_REQUEST, "that cannot be chosen: a strength and a place are numbers of [0, 1]")
            return
        self._answer(b"{}", "application/json")

    def _set(self, path: str, size: int) -> None:
        """What the page asks for in its next ``size`` bytes; a ValueError, KeyError or TypeError where it may not."""
        view = self.view
        if path == "/strength" and view.eps is not None:
            view.strength = _share(json.loads(self.rfile.read(size))["strength"])
        elif path == "/chosen":
            asked = json.loads(self.rfile.read(size))
            view.chosen = view.chosen.changed(asked, patch=view.patch is not None, corruptions=view.corruptions)
        else:
            raise ValueError(path)

    def _admitted(self) -> str | None:
        """The path that is asked for, or None where the request has been refused."""
        try:
            address = urlsplit(self.path)
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            self.path = "/"
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no address")
            return None
        # first, so that nobody else learns more than that
        if self.token is not None and not self._has_token(parse_qs(address.query)):
            self._refuse(HTTPStatus.UNAUTHORIZED, "open the address with ?token= and the token of this camera")
            return None
        # a name of another site that leads here (DNS rebinding) is not one of ours
        if self.own_names_only and not (host == "localhost" or _is_loopback(host)):
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers to its own address only")
            return None
        if self.headers.get("Sec-Fetch-Site") == "cross-site" and self.headers.get("Sec-Fetch-Mode") != "navigate":
            self._refuse(HTTPStatus.FORBIDDEN, "a page of another site may not show this camera")
            return None
        return address.path

    def _has_token(self, query: dict[str, list[str]]) -> bool:
        # not SimpleCookie: it gives up all at the first one of another program that it cannot parse
        pairs = [part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";")]
        given = [*query.get("token", []), *(value.strip('"') for name, _, value in pairs if name == _COOKIE)]
        return any(hmac.compare_digest(one.encode(), str(self.token).encode()) for one in given)

    def _answer(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self._common_headers(kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _common_headers(self, kind: str) -> None:
        for name, value in {"Content-Type": kind, **_HEADERS}.items():
            self.send_header(name, value)
        if self.token is not None and self._has_token(parse_qs(urlsplit(self.path).query)):
            self.send_header("Set-Cookie", f"{_COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/")

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True
        self._answer(f"{text}\n".encode(), "text/plain; charset=utf-8", status)

    def _pictures(self) -> None:
        self.send_response(HTTPStatus.OK)
        self._common_headers(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        number = 0
        self.wfile.write(f"--{_BOUNDARY}\r\n".encode())
        while not self.view.closed:
            began = time.monotonic()
            found = self.view.picture(number, 1.0)
            if found is None:
                continue
            number, content = found
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            # with the next boundary at once: Chromium shows a picture only when it has seen that
            self.wfile.write(head.encode() + content + f"\r\n--{_BOUNDARY}\r\n".encode())
            time.sleep(max(0.0, 1 / _PICTURES_PER_S - (time.monotonic() - began)))

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal has its own line."""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
