"""The server.properties of the local Kafka: one node for a laptop, and the ports that are free on it."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path

HOST = "127.0.0.1"
USUAL_PORT = 9092
# Below what the system gives to outgoing connections: a client that keeps trying a port of those while the broker is
# down can end up connected to itself, and the broker could not come back to it.
_FREE_PORTS = range(15_000, 30_000)

LAPTOP = """\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Back four seconds after a kill -9 instead of twelve: the old session must first time out.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=1
num.io.threads=2
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
"""


def server_properties(data: Path, *, port: int, controller_port: int) -> str:
    """The whole file; `data` is the folder of the log."""
    return (
        f"{LAPTOP}"
        f"listeners=PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}\n"
        f"advertised.listeners=PLAINTEXT://{HOST}:{port}\n"
        f"controller.quorum.voters=1@{HOST}:{controller_port}\n"
        f"log.dirs={data.absolute()}\n"
    )


def port_in(properties: Path) -> int | None:
    """The broker's port in a file that was written before; None where there is none."""
    if not properties.exists():
        return None
    found = re.search(r"^advertised\.listeners=.*:(\d+)$", properties.read_text(), re.MULTILINE)
    return int(found.group(1)) if found else None


def choose_port(wanted: int | None, earlier: int | None) -> int:
    """The wanted port; else the earlier one, to which clients come back; else 9092; else any that is free.

    Raises:
        ValueError: the wanted port is taken.
    """
    if wanted:
        if not is_free(wanted):
            raise ValueError(f"port {wanted} is taken; name another one, or none for a free one")
        return wanted
    usual = [USUAL_PORT] if wanted is None else []
    return next((port for port in (earlier, *usual) if port and is_free(port)), None) or free_port()


def free_port() -> int:
    """A port that nobody listens on."""
    while True:
        port = random.choice(_FREE_PORTS)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen there now; connections of a dead one that linger do not matter."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
        except OSError:
            return False
        return True
