"""The local Kafka as a process of the supervisor: it ends when the broker ends, and the broker ends with it.

`python -m deploy.local.kafka_keeper FOLDER`
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from deploy.local.kafka import LocalKafka
from deploy.local.tether import tie_to_parent
from deploy.observe.endpoint import write_atomically

LOOK_SECONDS = 0.2


def address_file(directory: Path) -> Path:
    """Holds `bootstrap_servers` while the broker answers."""
    return directory / "bootstrap-servers.txt"


def keep(directory: Path) -> None:
    """Starts the broker and returns once it has ended by itself; on SystemExit it is stopped."""
    kafka = LocalKafka(directory, report=lambda what: print(what, flush=True))  # noqa: T201 - this process's log
    address = address_file(directory)
    address.unlink(missing_ok=True)
    try:
        write_atomically(address, kafka.start().encode())
        while kafka.is_running:
            time.sleep(LOOK_SECONDS)
    finally:
        address.unlink(missing_ok=True)
        kafka.stop()


def main() -> None:
    """Keeps the broker of the folder named on the command line."""
    tie_to_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    directory = Path(sys.argv[1])
    try:
        keep(directory)
    except ValueError as error:
        sys.exit(str(error))
    sys.exit(f"the broker has ended; its log is {LocalKafka(directory).log}")


if __name__ == "__main__":
    main()
