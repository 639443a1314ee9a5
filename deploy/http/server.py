"""The HTTP process: one socket, one producer, one reader of `recommendations`, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import structlog
import uvicorn

from deploy.http.app import Api
from deploy.http.mailbox import Mailbox
from deploy.http.outbox import Outbox
from deploy.http.settings import HttpSettings
from deploy.settings import Settings

STOP_SECONDS = 5
BACKLOG = 2_048
LOOK_SECONDS = 0.1


class Server(uvicorn.Server):
    """Leaves the signals to the process that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield


def run_http(settings: Settings, stop: threading.Event, *, ready: Callable[[str], None] = lambda _url: None) -> None:
    """Serves until `stop` is set; `ready` hears the address once everything that comes in will be answered.

    Raises:
        ValueError: somebody else has the port.
        KafkaError: `recommendations` cannot be read.
    """
    http = settings.http
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(http))
        outbox = stack.enter_context(contextlib.closing(Outbox(settings.kafka)))
        mailbox = Mailbox(settings.kafka)
        follower = stack.enter_context(_following(mailbox))
        while not mailbox.ready.wait(LOOK_SECONDS) and not stop.is_set():
            _raise_failure(follower)
        api = Api(
            http,
            outbox,
            mailbox,
            max_future_ms=settings.stream.max_future_seconds * 1_000,
            max_fresh_wait_ms=settings.scoring.max_fresh_wait_ms,
        )
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        structlog.get_logger().info("http serves", url=url, token="asked for" if http.token else "none")
        ready(url)
        asyncio.run(_serve(api, listener, stop, follower))


async def _serve(api: Api, listener: socket.socket, stop: threading.Event, follower: Future[None]) -> None:
    config = uvicorn.Config(
        api.app(), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=STOP_SECONDS
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (stop.is_set() or follower.done() or serving.done()):  # noqa: ASYNC110 - signals set a thread's event
        await asyncio.sleep(LOOK_SECONDS)
    server.should_exit = True
    await serving
    _raise_failure(follower)


@contextlib.contextmanager
def _following(mailbox: Mailbox) -> Iterator[Future[None]]:
    ended = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="mailbox") as pool:
        try:
            yield pool.submit(mailbox.run, ended)
        finally:
            ended.set()


def _listener(http: HttpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((http.host, http.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ValueError(f"cannot listen on {http.host}:{http.port} ({error.strerror}); set http.port") from error
    return listener


def _raise_failure(follower: Future[None]) -> None:
    if follower.done():
        follower.result()
