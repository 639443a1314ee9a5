from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.child import BackOff, Child, Scheduling, last_line
from deploy.local.settings import SupervisorSettings
from deploy.local.supervisor import ProcessState, Program, Supervisor

Wait = Callable[[Callable[[], Any]], Any]

ENDLESS = "import time\nwhile True: time.sleep(60)"
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n" + ENDLESS
ORDERLY = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('up', flush=True)\n"
    + ENDLESS
)
FAILING = "print('first'); print('ValueError: no model; start the trainer'); raise SystemExit(3)"


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def python(name: str, code: str) -> Program:
    return Program(name, name, (sys.executable, "-I", "-c", code))


def stop_all(supervisor: Supervisor, *, within_seconds: float = 60.0) -> list[str]:
    return supervisor.stop([state.name for state in supervisor.states()], within_seconds=within_seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervisor(tmp_path: Path, clock: Clock) -> Iterator[Supervisor]:
    made = Supervisor(SupervisorSettings(), logs=tmp_path, clock=clock)
    yield made
    for state in made.states():
        made.restart(state.name, because="the test is over")
    stop_all(made)


def state(supervisor: Supervisor, name: str) -> ProcessState:
    return next(one for one in supervisor.states() if one.name == name)


def tended(supervisor: Supervisor, name: str) -> ProcessState:
    supervisor.tend()
    return state(supervisor, name)


def test_a_killed_process_is_started_again_after_the_wait_and_the_signal_is_named(
    supervisor: Supervisor, clock: Clock, wait_until: Wait
) -> None:
    supervisor.start(python("stream", ENDLESS))
    first = state(supervisor, "stream").pid
    psutil.Process(first).kill()

    wait_until(lambda: tended(supervisor, "stream").state == "waiting")
    reason = state(supervisor, "stream").reason
    clock.now += 0.4
    still = tended(supervisor, "stream").state
    clock.now += 0.2
    after = tended(supervisor, "stream")

    assert reason == "killed by SIGKILL: it said nothing"
    assert still == "waiting"
    assert (after.state, after.restarts) == ("running", 1)
    assert after.pid != first


def test_a_program_that_gives_way_does_so_with_its_threads_and_children(
    supervisor: Supervisor, wait_until: Wait, tmp_path: Path
) -> None:
    child = "import os; print(os.nice(0))"
    of_thread = f"lambda: subprocess.run([sys.executable, '-I', '-c', {child!r}])"
    code = f"import subprocess, sys, threading\nthreading.Thread(target={of_thread}).start()\n{ENDLESS}"

    supervisor.start(python("trainer", code)._replace(scheduling=Scheduling(niceness=7)))
    supervisor.start(python("stream", code))
    wait_until(lambda: all(last_line(tmp_path / f"{name}.log") for name in ("trainer", "stream")))
    said = [last_line(tmp_path / f"{name}.log") for name in ("trainer", "stream")]

    own = os.nice(0)
    assert said == [str(min(own + 7, 19)), str(own)]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the system has no batch policy")
def test_a_program_that_interrupts_nobody_keeps_its_share(supervisor: Supervisor) -> None:
    supervisor.start(python("trainer", ENDLESS)._replace(scheduling=Scheduling(interrupts=False)))
    supervisor.start(python("stream", ENDLESS))

    pids = [one.pid for one in supervisor.states() if one.pid]

    assert [os.sched_getscheduler(pid) for pid in pids] == [os.SCHED_BATCH, os.SCHED_OTHER]
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [os.nice(0)] * 2


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="sessions are not weighed against each other")
def test_sessions_of_programs_that_give_way_do_so_too(supervisor: Supervisor) -> None:
    for name in ("trainer", "scheduler"):
        supervisor.start(python(name, ENDLESS)._replace(scheduling=Scheduling(niceness=7)))
    supervisor.start(python("stream", ENDLESS))

    weights = [Path(f"/proc/{one.pid}/autogroup").read_text().split()[-1] for one in supervisor.states()]

    assert weights == [str(min(os.nice(0) + 7, 19))] * 2 + ["0"]


def test_a_process_that_dies_says_its_exit_status_and_its_last_words(supervisor: Supervisor, wait_until: Wait) -> None:
    supervisor.start(python("trainer", FAILING))

    wait_until(lambda: tended(supervisor, "trainer").reason)

    assert state(supervisor, "trainer").reason == "exit status 3: ValueError: no model; start the trainer"


def test_a_process_that_always_dies_is_never_given_up_but_waited_for_longer_and_longer(
    supervisor: Supervisor, clock: Clock, wait_until: Wait
) -> None:
    supervisor.start(python("trainer", FAILING))
    waits = []

    for death in range(1, 9):
        wait_until(lambda death=death: tended(supervisor, "trainer").restarts == death)  # type: ignore[misc]
        started = clock.now
        while tended(supervisor, "trainer").state == "waiting":
            clock.now += 0.25
        waits.append(clock.now - started)

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_the_wait_is_bounded_and_starts_over_after_a_good_while(ran: list[float]) -> None:
    back_off = BackOff(first_seconds=0.5, longest_seconds=30.0, good_while_seconds=60.0)
    before = 0.0

    for seconds in ran:
        back_off = back_off.after(ran_seconds=seconds)

        assert back_off.wait_seconds == (0.5 if seconds >= 60.0 or before == 0.0 else min(30.0, 2 * before))
        before = back_off.wait_seconds


def test_a_process_that_does_not_work_is_restarted_with_that_reason(
    supervisor: Supervisor, clock: Clock, wait_until: Wait
) -> None:
    supervisor.start(python("scoring", STUBBORN))

    supervisor.restart("scoring", because="its metrics endpoint has not answered for 20 s")
    wait_until(lambda: tended(supervisor, "scoring").state == "waiting")
    clock.now += 1.0

    assert tended(supervisor, "scoring").state == "running"
    assert state(supervisor, "scoring").reason == "its metrics endpoint has not answered for 20 s"


def test_stopping_is_a_clean_end_and_nothing_is_started_again(
    supervisor: Supervisor, tmp_path: Path, wait_until: Wait
) -> None:
    supervisor.start(python("stream", ORDERLY))
    supervisor.start(python("scoring", ORDERLY))
    wait_until(lambda: all((tmp_path / f"{name}.log").read_text() for name in ("stream", "scoring")))
    pids = [one.pid for one in supervisor.states()]

    killed = stop_all(supervisor)
    supervisor.tend()

    assert killed == []
    assert supervisor.states() == []
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


def test_one_that_will_not_stop_is_killed_after_the_bound_and_named(tmp_path: Path, wait_until: Wait) -> None:
    supervisor = Supervisor(SupervisorSettings(), logs=tmp_path)
    supervisor.start(python("stream", STUBBORN))
    supervisor.start(python("scoring", ORDERLY))
    wait_until(lambda: all((tmp_path / f"{name}.log").read_text() for name in ("stream", "scoring")))

    assert stop_all(supervisor, within_seconds=3.0) == ["stream"]


def test_what_was_not_started_here_is_left_alone(supervisor: Supervisor, tmp_path: Path) -> None:
    other = Child(python("other", ENDLESS).command, log=tmp_path / "other.log")
    supervisor.start(python("stream", ENDLESS))

    stop_all(supervisor)

    assert other.ended() is None
    other.kill(because="the test is over")
    assert other.wait(60.0) == -signal.SIGKILL


def test_children_end_with_a_supervisor_that_was_killed(tmp_path: Path, wait_until: Wait) -> None:
    tied = "from deploy.local.tether import tie_to_parent; tie_to_parent(); print('tied', flush=True);" + ENDLESS
    parent = (
        "import sys, time; from pathlib import Path; from deploy.local.child import Child\n"
        f"child = Child((sys.executable, '-c', {tied!r}), log=Path({str(tmp_path)!r}) / 'child.log')\n"
        "print(child.pid, flush=True)\n" + ENDLESS
    )
    supervising = Child((sys.executable, "-c", parent), log=tmp_path / "parent.log")
    child = int(wait_until((tmp_path / "parent.log").read_text))
    wait_until(lambda: (tmp_path / "child.log").exists() and (tmp_path / "child.log").read_text())

    psutil.Process(supervising.pid).kill()

    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert supervising.wait(60.0) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ('{"event": "stopped", "level": "info"}\n', "stopped"),
        ('{"event": "crashed", "exception": "Traceback\\n  line 1\\nKeyError: 7"}\n', "crashed: KeyError: 7"),
        ('{"event": "not read", "error": "too long"}\n', "not read: too long"),
        ("[1, 2]\n", "[1, 2]"),
        ("x" * 9_000, "x" * 160),
        ("\xff\xfe\n", "\xff\xfe"),
    ],
)
def test_the_last_words_of_a_log_are_short_and_readable(tmp_path: Path, log: str, shown: str) -> None:
    (tmp_path / "some.log").write_text(log)

    assert last_line(tmp_path / "some.log") == shown


def test_a_log_that_grew_too_long_is_put_aside_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "stream.log"
    with log.open("wb") as file:
        file.truncate(11 << 20)

    child = Child(python("stream", "print('anew')").command, log=log)

    assert child.wait(60.0) == 0
    assert log.read_text() == "anew\n"
    assert log.with_suffix(".log.1").stat().st_size == 11 << 20
