"""Every wait and stop object of tenacity can look at a row's tries; and outages of the standard
library's own clients are waited out."""

from __future__ import annotations

import asyncio
import datetime
import http.client
import inspect
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity
from tenacity import stop as stops
from tenacity import wait as waits

from cachekit.strategies.answers import attempted, is_outage
from cachekit.strategies.intent import outcome_unknown

FAULT = ValueError("no")


def _made(kind: Any) -> Any:
    """An object of the class, whatever it wants."""
    given = {
        "wait_exception": [lambda error: 2.5 if error is FAULT else -1.0],
        "wait_chain": [waits.wait_fixed(1), waits.wait_fixed(2)],
        "wait_combine": [waits.wait_fixed(1), waits.wait_fixed(2)],
        "stop_any": [stops.stop_after_attempt(9), stops.stop_after_delay(5)],
        "stop_all": [stops.stop_after_attempt(1), stops.stop_after_delay(5)],
        "stop_when_event_set": [threading.Event()],
        "stop_after_attempt": [3],
        "stop_after_delay": [5],
        "stop_before_delay": [5],
        "wait_fixed": [1],
    }
    return kind(*given.get(kind.__name__, []))


def _kinds(module: Any, base: type) -> list[Any]:
    found = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    return [k for k in found if issubclass(k, base) and not inspect.isabstract(k)]


@pytest.mark.parametrize("kind", _kinds(waits, waits.wait_base))
def test_every_wait_gives_a_pause(kind: Any) -> None:
    wait = _made(kind)
    for number in (1, 2, 7):
        state = attempted(number, FAULT, seconds=1.0, idle=0.5, wait=wait)
        assert 0.0 <= state.upcoming_sleep < 1e6
        assert wait(attempted(number)) >= 0.0 or kind.__name__ == "wait_exception"
    assert "ValueError" in repr(state)


@pytest.mark.parametrize("kind", _kinds(stops, stops.stop_base))
def test_every_stop_gives_an_answer(kind: Any) -> None:
    stop = _made(kind)
    for number in (1, 2, 7):
        assert stop(attempted(number)) in (True, False)
    if "delay" in kind.__name__ or kind.__name__ in ("stop_any", "stop_all"):
        assert not stop(attempted(2, FAULT, seconds=4.9))
        assert stop(attempted(2, FAULT, seconds=5.1))


@pytest.mark.skipif(not hasattr(stops, "stop_before_delay"), reason="an older tenacity")
def test_a_stop_before_a_time_counts_the_pause_to_come() -> None:
    stop = stops.stop_before_delay(datetime.timedelta(seconds=5))
    assert not stop(attempted(1, FAULT, seconds=3.0, wait=waits.wait_fixed(1)))
    assert stop(attempted(1, FAULT, seconds=3.0, wait=waits.wait_fixed(2.5)))


def test_functions_of_ones_own_see_the_try() -> None:
    seen: list[Any] = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        seen.append((state.attempt_number, state.outcome.exception(), state.outcome.failed))
        seen.append((state.idle_for, round(state.seconds_since_start or 0.0, 3)))
        return 0.25

    state = attempted(3, FAULT, seconds=2.0, idle=1.5, wait=wait)
    assert seen == [(3, FAULT, True), (1.5, 2.0)]
    assert (state.upcoming_sleep, state.outcome.attempt_number) == (0.25, 3)  # type: ignore[union-attr]


# -- outages ------------------------------------------------------------------------------


def _raised_by(work: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


class _Dropping:
    """A server that reads a request, says something, and is gone."""

    def __init__(self, says: bytes) -> None:
        self.says = says

    def __enter__(self) -> int:
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        port: int = self.socket.getsockname()[1]
        return port

    def _serve(self) -> None:
        try:
            client, _ = self.socket.accept()
        except OSError:  # nobody came
            return
        with client:
            client.settimeout(10)
            client.recv(4096)
            client.sendall(self.says)

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _asked(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (b"", http.client.RemoteDisconnected),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", http.client.IncompleteRead),
        (b"\0\1 no answer\r\n\r\n", http.client.BadStatusLine),
    ],
)
def test_an_answer_that_is_cut_off_parks_nothing(says: bytes, kind: type[Exception]) -> None:
    with _Dropping(says) as port:
        error = _raised_by(lambda: _asked(port))
    assert isinstance(error, kind)
    assert is_outage(error)
    assert outcome_unknown(error)


def test_a_server_that_urllib_does_not_reach_parks_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = _raised_by(lambda: _asked(port))
    assert type(error) is urllib.error.URLError
    assert is_outage(error)
    assert is_outage(urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "unknown")))
    assert not is_outage(urllib.error.URLError("no host given"))
    assert not is_outage(urllib.error.HTTPError("http://x", 404, "no", None, None))  # type: ignore[arg-type]


def test_a_tls_connection_that_breaks_or_is_not_trusted_parks_nothing() -> None:
    context = ssl.create_default_context()
    with _Dropping(b"no TLS at all") as port, socket.create_connection(("127.0.0.1", port)) as raw:
        error = _raised_by(lambda: context.wrap_socket(raw, server_hostname="x"))
    for each in (error, ssl.SSLEOFError(8, "EOF"), ssl.SSLCertVerificationError(1, "expired")):
        assert isinstance(each, ssl.SSLError)
        assert is_outage(each)


def test_a_unix_socket_that_is_gone_parks_nothing_and_a_missing_file_does(tmp_path: Path) -> None:
    path = str(tmp_path / "gone")

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    assert is_outage(_raised_by(connect))
    assert not is_outage(_raised_by(Path(path).read_text))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)  # and does not listen
        assert is_outage(_raised_by(connect))


def test_a_name_none_of_whose_addresses_answers_parks_nothing() -> None:
    """As "localhost", for asyncio, with a server that is away."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    async def connect() -> None:
        loop = asyncio.get_running_loop()

        async def addresses(*_: Any, **__: Any) -> Any:
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, (f"127.0.0.{last}", port)) for last in (1, 2)]

        loop.getaddrinfo = addresses  # type: ignore[method-assign]
        await asyncio.open_connection("two.example", port)

    error = _raised_by(lambda: asyncio.run(connect()))
    assert isinstance(error, OSError)
    assert is_outage(error)
    assert not is_outage(OSError("no file of that kind"))
