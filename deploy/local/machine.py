"""Everything that runs on one machine: Kafka unless there is one, topics, processes, audience, in the right order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import msgspec
from kafka.errors import KafkaError

from deploy.local.audience_process import Produced, produced_file
from deploy.local.child import Scheduling, last_line
from deploy.local.kafka import LocalKafka
from deploy.local.kafka_keeper import address_file
from deploy.local.ledger import read_ledger
from deploy.local.summary import Ledger
from deploy.local.supervisor import ProcessState, Program, Supervisor
from deploy.local.watchdog import Watchdog
from deploy.observe.offsets import Offsets
from deploy.observe.sampler import Look, Sampler
from deploy.settings import Settings
from stream.admin import create_topics, require_topics
from stream.topics import CLICKS, IMPRESSIONS

KAFKA = "kafka"
AUDIENCE = "audience"
KAFKA_STOP_SECONDS = 2.0


class Machine:
    """Starts and stops in order, and never what it did not start: a broker that ran before goes on running.

    `arguments` are options before the command that every process gets too; `tell` hears what people should know.
    """

    def __init__(self, settings: Settings, *, arguments: Sequence[str], tell: Callable[[str], None]) -> None:
        self.settings = settings
        self._arguments = arguments
        self._tell = tell
        self._supervisor = Supervisor(settings.supervisor, logs=settings.state.directory / "logs", tell=tell)
        self._watchdog = Watchdog(settings.supervisor)
        self._sampler: Sampler | None = None
        self._watched: Look | None = None

    @property
    def look(self) -> Look | None:
        """What was last seen of the running system."""
        return self._sampler.newest if self._sampler else None

    @property
    def states(self) -> list[ProcessState]:
        """Every process, in the order in which they were started."""
        return self._supervisor.states()

    def start_kafka(self) -> None:
        """Starts the local broker, unless another is configured or one runs in its folder already."""
        if "bootstrap_servers" in self.settings.kafka.model_fields_set:
            return
        running = LocalKafka(self.settings.kafka_directory).status().bootstrap_servers
        if running is not None:
            self._tell(f"using the Kafka that runs at {running}; it goes on running afterwards")
            self._use_kafka(running)
            return
        directory = self.settings.kafka_directory
        address_file(directory).unlink(missing_ok=True)
        command = (sys.executable, "-m", "deploy.local.kafka_keeper", str(directory))
        self._supervisor.start(Program(KAFKA, KAFKA, command))

    def kafka_answers(self) -> bool:
        """Whether the broker is there to be used.

        Raises:
            ValueError: the local one cannot be started, and why.
        """
        if "bootstrap_servers" in self.settings.kafka.model_fields_set:
            return True
        file = address_file(self.settings.kafka_directory)
        if file.exists():
            self._use_kafka(file.read_text())
            return True
        if reason := next((state.reason for state in self.states if state.name == KAFKA), None):
            log = self._supervisor.log_of(KAFKA)
            raise ValueError(
                f"the local Kafka does not start: {reason}; see {log}, or name a Kafka of your own with "
                "--bootstrap-servers"
            )
        return False

    def start_applications(self) -> None:
        """Creates the topics that are missing, then starts every process and the sampler.

        Raises:
            ValueError: the topics that stand are not as they must be.
        """
        create_topics(self.settings.kafka)
        require_topics(self.settings.kafka)
        workers = {
            "stream": self.settings.supervisor.stream_workers,
            "scoring": self.settings.supervisor.scoring_workers,
        }
        mapper = ("mapper",) if self.settings.mapping.sources else ()
        http = ("http",) if self.settings.http.enabled else ()
        for kind in ("stream", *mapper, "trainer", "scoring", "scheduler", *http):
            for number in range(1, workers.get(kind, 1) + 1):
                self._start(kind, name=kind if number == 1 else f"{kind}-{number}")
        self._offsets = Offsets(self.settings.kafka)
        self._sampler = Sampler(self.settings, self._supervisor.states)
        self._sampler.start()

    def kafka_news(self) -> str:
        """What the broker that is being started does just now: fetching takes a while on the first day."""
        return ": ".join(filter(None, ("starting Kafka", last_line(self._supervisor.log_of(KAFKA)))))

    def applications_work(self) -> bool:
        """Whether every process answers, the trainer has its network, and every consumer group its partitions."""
        if self.look is None or self.look.snapshot.examples_trained is None:
            return False
        names = {state.name for state in self.states if state.kind != KAFKA}
        try:
            return names <= set(self.look.observation.answered) and self._offsets.groups_are_stable()
        except KafkaError:  # reason: the broker was restarted meanwhile
            return False

    def stream_has_caught_up(self) -> bool:
        """Whether every click and impression has been committed, and so has its outcome."""
        try:
            progress = self._offsets.progress()["stream"]
        except KafkaError:  # reason: the broker was restarted meanwhile
            return False
        return all(one.lag == 0 for (name, _), one in progress.items() if name in (CLICKS, IMPRESSIONS))

    def ledger(self) -> Ledger:
        """How many messages there are, and what became of them."""
        return read_ledger(self.settings.kafka)

    def start_audience(self) -> None:
        """Lets the simulated audience in."""
        produced_file(self.settings.state.directory).unlink(missing_ok=True)
        self._start(AUDIENCE, name=AUDIENCE)

    def stop_audience(self) -> Produced:
        """Sends the audience home and gives what it had produced."""
        self._supervisor.stop([AUDIENCE], within_seconds=self.settings.supervisor.stop_seconds)
        return msgspec.json.decode(produced_file(self.settings.state.directory).read_bytes(), type=Produced)

    def tend(self) -> None:
        """Restarts what has ended or does not work; call it several times a second."""
        self._supervisor.tend()
        look = self.look
        if look is not None and look is not self._watched:
            self._watched = look
            watched = [state for state in look.snapshot.processes if state.kind != KAFKA]
            for fault in self._watchdog.observe(watched, look.observation):
                self._supervisor.restart(fault.name, because=fault.reason)

    def stop(self) -> None:
        """Stops the applications, then Kafka, if it was started here."""
        deadline = time.monotonic() + self.settings.supervisor.stop_seconds
        names = [state.name for state in self.states]
        applications = [name for name in names if name != KAFKA]
        self._supervisor.stop(applications, within_seconds=deadline - time.monotonic() - KAFKA_STOP_SECONDS)
        if self._sampler is not None:
            self._sampler.stop()
        if KAFKA in names:
            self._supervisor.stop([KAFKA], within_seconds=max(KAFKA_STOP_SECONDS, deadline - time.monotonic()))
            LocalKafka(self.settings.kafka_directory).kill()

    def _use_kafka(self, bootstrap_servers: str) -> None:
        kafka = self.settings.kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
        self.settings = self.settings.model_copy(update={"kafka": kafka})

    def _start(self, kind: str, *, name: str) -> None:
        options = (
            "--bootstrap-servers", self.settings.kafka.bootstrap_servers,
            "--state-directory", str(self.settings.state.directory),
        )  # fmt: skip
        command = (sys.executable, "-m", "deploy.cli", "--tethered", *self._arguments, *options, "run", kind)
        self._supervisor.start(Program(name, kind, (*command, "--name", name), self._scheduling(kind)))

    def _scheduling(self, kind: str) -> Scheduling:
        """What learns never interrupts what answers, and gives way to it as settings say."""
        niceness = {
            "trainer": self.settings.supervisor.learning_niceness,
            "scheduler": self.settings.supervisor.retraining_niceness,
        }
        return Scheduling(niceness.get(kind, 0), interrupts=kind not in niceness)
