"""The page's server: what it gives, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import io
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest
from PIL import Image

from edgeadv_runtime.camera import connections
from edgeadv_runtime.camera.connections import MOST_CONNECTIONS
from edgeadv_runtime.camera.serve import MOST_VIEWERS, Chosen, PageServer, View, parse_address
from edgeadv_runtime.errors import InputError, StorageError

TOKEN = "abcdefgh12345678"
STATE = {"label": "cat", "age_ms": 1.5}
JSON = {"Content-Type": "application/json", "X-Edgeadv": "1"}


@contextmanager
def served(*, eps: str | None = "8/255", token: str | None = None) -> Iterator[tuple[View, int]]:
    view = View(title="a model", eps=eps)
    with PageServer(view, "127.0.0.1:0", token=token) as page:
        yield view, int(page.url.rpartition(":")[2].partition("/")[0])
    assert not any(thread.name == "edgeadv-page" for thread in threading.enumerate())


def ask(
    port: int, path: str, *, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_the_page_and_what_it_needs() -> None:
    with served() as (_, port):
        for path, kind, says in (
            ("/", "text/html", b"<title>"),
            ("/app.js", "text/javascript", b"fetch"),
            ("/style.css", "text/css", b"main"),
        ):
            status, content, headers = ask(port, path)
            assert status == 200 and says in content and headers["Content-Type"] == f"{kind}; charset=utf-8"
            assert "script-src 'self'" in headers["Content-Security-Policy"]
            # nothing from elsewhere, nothing inline
            assert b"http://" not in content.replace(b"http://www.w3.org", b"") and b"https://" not in content
        assert ask(port, "/../runs.py")[0] == 404 and ask(port, "/page/app.js")[0] == 404


def test_the_state_is_of_the_last_picture() -> None:
    with served() as (view, port):
        nothing = {"patch": None, "corruption": None, "severity": 3}
        begin = {
            "title": "a model",
            "eps": "8/255",
            "strength": 0.0,
            "patch": None,
            "corruptions": [],
            "chosen": nothing,
        }
        waiting = {"status": "waiting for the first frame", "picture_age_s": None, "number": 0}
        assert json.loads(ask(port, "/state")[1]) == {**begin, **waiting}
        view.show(np.zeros((8, 8, 3), np.uint8), STATE)
        found = json.loads(ask(port, "/state")[1])
        age = found.pop("picture_age_s")
        assert 0 <= age < 5 and found == {**begin, "status": "waiting for the first frame", "number": 1, **STATE}
        # a camera that is lost shows, though no picture comes
        view.status = "the camera is lost"
        assert json.loads(ask(port, "/state")[1])["status"] == "the camera is lost"


def pictures(port: int, count: int) -> list[Image.Image]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/stream.mjpg")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
    found = []
    for _ in range(count):
        # the boundary comes with the picture before it
        assert answer.fp.readline() == b"--frame\r\n"
        assert answer.fp.readline() == b"Content-Type: image/jpeg\r\n"
        size = int(answer.fp.readline().split()[1])
        assert answer.fp.readline() == b"\r\n"
        found.append(Image.open(io.BytesIO(answer.fp.read(size))))
        assert answer.fp.readline() == b"\r\n"
    connection.close()
    return found


def test_the_pictures_move() -> None:
    stop = threading.Event()
    with served() as (view, port):

        def show() -> None:
            level = 0
            while not stop.wait(0.02):
                level = (level + 10) % 250
                view.show(np.full((32, 32, 3), level, np.uint8), STATE)

        writer = threading.Thread(target=show)
        writer.start()
        try:
            found = pictures(port, 5)
        finally:
            stop.set()
            writer.join()
        # small pictures are enlarged by whole pixels
        assert {picture.size for picture in found} == {(224, 224)}
        assert len({int(np.asarray(picture).mean()) for picture in found}) > 2


def test_a_watcher_does_not_hold_up_the_end() -> None:
    with served() as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/stream.mjpg")
        connection.getresponse()
    connection.close()


def test_so_many_viewers_and_no_more_until_one_leaves() -> None:
    def watch(port: int) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/stream.mjpg")
        return connection.getresponse()

    with served() as (view, port):
        viewers = [watch(port) for _ in range(MOST_VIEWERS)]
        assert {viewer.status for viewer in viewers} == {200}
        late = watch(port)
        assert late.status == 503 and b"viewers are here already" in late.read()
        assert ask(port, "/state")[0] == 200
        viewers.pop().close()
        end = time.monotonic() + 30
        while (viewer := watch(port)).status != 200:
            assert time.monotonic() < end, "the place of a viewer who left stays taken"
            viewer.close()
            # who left shows when a picture is sent
            view.show(np.zeros((32, 32, 3), np.uint8), STATE)
            time.sleep(0.05)
        for one in (*viewers, viewer):
            one.close()


def test_the_page_chooses_a_patch_and_a_corruption() -> None:
    with served() as (view, port):
        view.patch, view.corruptions = "5%", ("fog", "snow")
        for body in (b'{"patch": [0.25, 1]}', b'{"corruption": "snow", "severity": 5}'):
            assert ask(port, "/chosen", method="POST", body=body, headers=JSON)[0] == 200
        assert view.chosen == Chosen((0.25, 1.0), "snow", 5)
        assert json.loads(ask(port, "/state")[1])["chosen"] == {
            "patch": [0.25, 1.0],
            "corruption": "snow",
            "severity": 5,
        }
        for body in (b'{"patch": [2, 0]}', b'{"corruption": "smog"}', b'{"severity": 9}', b"{", b"[]", b"{}"):
            assert ask(port, "/chosen", method="POST", body=body, headers=JSON)[0] == 400
        assert ask(port, "/chosen", method="POST", body=b'{"patch": null}', headers={})[0] == 403
        assert view.chosen == Chosen((0.25, 1.0), "snow", 5)


def test_the_slider_sets_the_strength() -> None:
    with served() as (view, port):
        assert ask(port, "/strength", method="POST", body=b'{"strength": 0.5}', headers=JSON)[0] == 200
        assert view.strength == 0.5 and json.loads(ask(port, "/state")[1])["strength"] == 0.5
        bodies = (
            b'{"strength": 2}',
            b'{"strength": true}',
            b'{"strength": "1"}',
            b'{"strength": NaN}',
            b"[]",
            b"",
            b"{",
            b" " * 2000,
        )
        for body in bodies:
            assert ask(port, "/strength", method="POST", body=body, headers=JSON)[0] == 400
        # what a form of another site could send
        for headers in ({}, {"Content-Type": "text/plain", "X-Edgeadv": "1"}, {"Content-Type": "application/json"}):
            assert ask(port, "/strength", method="POST", body=b'{"strength": 1}', headers=headers)[0] == 403
        assert ask(port, "/state", method="POST", body=b'{"strength": 1}', headers=JSON)[0] == 400
        assert view.strength == 0.5
    with served(eps=None) as (view, port):
        assert ask(port, "/strength", method="POST", body=b'{"strength": 0.5}', headers=JSON)[0] == 400


def test_another_sites_name_for_this_address_is_refused() -> None:
    with served() as (_, port):
        assert ask(port, "/state", headers={"Host": f"evil.example:{port}"})[0] == 403
        assert ask(port, "/state", headers={"Host": f"localhost:{port}"})[0] == 200
        assert ask(port, "/state", headers={"Host": ""})[0] == 403


def test_a_page_of_another_site_shows_nothing() -> None:
    with served() as (_, port):
        elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        assert ask(port, "/state", headers=elsewhere)[0] == ask(port, "/stream.mjpg", headers=elsewhere)[0] == 403
        # a link leads here all the same
        assert ask(port, "/", headers={**elsewhere, "Sec-Fetch-Mode": "navigate"})[0] == 200
        assert ask(port, "/")[2]["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_token_is_asked_of_every_request() -> None:
    with served(token=TOKEN) as (view, port):
        for path in ("/", "/state", "/stream.mjpg", "/app.js"):
            assert ask(port, path)[0] == 401
            assert ask(port, f"{path}?token={TOKEN[:-1]}x")[0] == 401
        assert ask(port, "/strength", method="POST", body=b'{"strength": 1}', headers=JSON)[0] == 401
        assert view.strength == 0
        status, _, headers = ask(port, f"/?token={TOKEN}")
        assert status == 200
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert ask(port, "/state", headers={"Cookie": cookie.partition(";")[0]})[0] == 200
        # beside one of another program at the same address that the standard library cannot parse
        both = f'other={{"a":1}}; {cookie.partition(";")[0]}'
        assert ask(port, "/state", headers={"Cookie": both})[0] == 200


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "192.168.1.5:8080", "[::]:8080"])
def test_an_address_that_others_reach_needs_a_token(address: str) -> None:
    with pytest.raises(InputError, match="can be reached from other machines: give it a `token`"):
        PageServer(View(title="", eps=None), address)


@pytest.mark.parametrize("token", ["", "short", "sixteen characters!", "ähnlichähnlichähnlich"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="a token has at least 16 letters and digits"):
        PageServer(View(title="", eps=None), "127.0.0.1:0", token=token)


@pytest.mark.parametrize(
    "address", ["", "8080", "localhost:8080", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "1.2.3:80"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="is not an address and a port"):
        parse_address(address)


def test_a_port_that_is_taken() -> None:
    with served() as (_, port), pytest.raises(StorageError, match=f"cannot serve on 127.0.0.1:{port}"):
        PageServer(View(title="", eps=None), f"127.0.0.1:{port}")


def test_ipv6() -> None:
    assert parse_address("[::1]:80") == ("::1", 80)
    with PageServer(View(title="", eps=None), "[::1]:0") as page:
        assert page.url.startswith("http://[::1]:")


def threads_end(before: int) -> None:
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 1


def said(connection: socket.socket) -> bytes | None:
    """Nothing where the other end has closed, None where it waits."""
    try:
        return connection.recv(1)
    except TimeoutError:
        return None


def test_so_many_connections_and_no_more_and_none_that_never_finishes_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 2)
    with served() as (_, port):
        before = threading.active_count()
        began = time.monotonic()
        idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(MOST_CONNECTIONS - 1)]
        for connection in idle[::2]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert ask(port, "/state")[0] == 200
        more = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(95)]
        # who is over the number is told at once; one of them may have had the last place
        for connection in more:
            connection.settimeout(0.5)
        late = [connection for connection in more if said(connection) == b""]
        assert len(late) >= 94 and time.monotonic() - began < 2
        assert threading.active_count() <= before + MOST_CONNECTIONS
        # the other end closes: nothing more is read
        assert [connection.recv(1) for connection in idle] == [b""] * len(idle)
        threads_end(before)
        assert ask(port, "/state")[0] == 200
        for connection in (*idle, *more):
            connection.close()


def test_a_byte_now_and_then_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 1)
    head = "POST /strength HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Edgeadv: 1\r\n"
    with served() as (view, port):
        for text in (head + "\r\n", head + "Content-Length: 1000\r\n\r\n" + " " * 999):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                began = time.monotonic()
                with suppress(ConnectionError):
                    if text.endswith(" "):
                        connection.sendall(text[:-999].encode())
                    for i in range(len(text)):
                        connection.sendall(text[i].encode() if not text.endswith(" ") else b" ")
                        time.sleep(0.02)
                assert 0.9 < time.monotonic() - began < 4
        assert view.strength == 0 and ask(port, "/state")[0] == 200


def test_a_connection_may_go_on_for_as_long_as_its_requests_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    with served() as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(5):
            connection.request("GET", "/state")
            assert connection.getresponse().read()
            time.sleep(0.25)
        connection.close()


def test_viewers_that_never_read_lose_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 1)
    rng = np.random.default_rng(0)
    with served() as (view, port):
        for _ in range(2):
            viewers = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(MOST_VIEWERS)]
            for viewer in viewers:
                viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
            began, status = time.monotonic(), 0
            while status != 200:
                # a picture of 20 kB
                view.show(rng.integers(0, 256, (224, 224, 3), np.uint8), STATE)
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/stream.mjpg")
                status = connection.getresponse().status
                connection.close()
                assert time.monotonic() - began < 10
                time.sleep(0.05)
            for viewer in viewers:
                viewer.close()


def test_a_slow_viewer_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part now and then is enough, though a whole picture takes longer than a viewer may stand still."""
    monkeypatch.setattr(connections, "STALL_S", 1)
    rng = np.random.default_rng(0)
    with served() as (view, port):
        viewer = socket.socket()
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        viewer.connect(("127.0.0.1", port))
        viewer.settimeout(5)
        viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
        while time.monotonic() - began < 4:
            view.show(rng.integers(0, 256, (640, 640, 3), np.uint8), STATE)  # 150 kB
            assert viewer.recv(4096)
            time.sleep(0.2)
        viewer.close()


def test_the_token_is_asked_for_before_anything_else() -> None:
    with served(token=TOKEN) as (_, port):
        for path, headers in (
            ("/nothing", {}),
            ("/", {"Host": "evil.example"}),
            ("/stream.mjpg", {"Sec-Fetch-Site": "cross-site"}),
        ):
            assert ask(port, path, headers=headers)[0] == 401
        assert ask(port, "/strength", method="POST", body=b"", headers={"Content-Length": "99999"})[0] == 401
        assert ask(port, "/", headers={"Host": "["})[0] == 400
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_few_open_files_leave_half_of_them_to_capture() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = psutil.Process().num_fds()
        for left, expected in ((500, MOST_CONNECTIONS), (40, 20), (3, 1)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + left, hard))
            assert abs(connections.places() - expected) <= 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
