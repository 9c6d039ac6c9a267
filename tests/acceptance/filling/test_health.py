"""``pgembed worker --health``, asked beside worker processes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest
from sqlalchemy import URL, Engine

from pgembed.filling import heartbeat
from pgembed.filling.heartbeat import Heartbeat, State, problems
from tests.commands import call, start, wait_for
from tests.tables import execute, rows

from .models import MODELS, Base


class Workers:
    """Worker processes with their heartbeats in a folder of the test's."""

    def __init__(self, url: URL, folder: Path) -> None:
        self.url, self.folder = url.render_as_string(hide_password=False), folder
        self.running: list[Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> Popen[str]:
        worker = start(
            *("worker", "--poll", "0.05", "--heartbeat", str(self.folder / "beats"), *arguments),
            log=self.folder / "log",
            PGEMBED_URL=self.url,
            **environment,
        )
        self.running.append(worker)
        wait_for(lambda: (self.folder / f"beats/worker-{worker.pid}.json").exists())
        return worker

    def beat_again(self) -> None:
        """Wait until each that is alive has reported its state again."""
        asked = time.time()
        files = [self.folder / f"beats/worker-{w.pid}.json" for w in self.running if w.poll() is None]
        wait_for(lambda: all(json.loads(file.read_text())["at"] > asked for file in files))

    def problems(self, grace: float = 1) -> list[str]:
        return problems(self.folder / "beats", grace=grace)

    def health(self, grace: float = 120) -> tuple[int, str]:
        """The check has no database: it needs none."""
        check = ("worker", "--health", "--grace", str(grace))
        done = call(*check, PGEMBED_HEARTBEAT=str(self.folder / "beats"))
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def workers(engine: Engine, url: URL, tmp_path: Path) -> Iterator[Workers]:
    Base.metadata.create_all(engine)
    made = Workers(url, tmp_path)
    yield made
    for worker in made.running:
        worker.kill()
        worker.wait()


def test_it_is_green_while_idle_or_filling_and_red_without_a_worker(workers: Workers, engine: Engine) -> None:
    code, said = workers.health()
    assert (code, "no worker runs" in said) == (1, True)
    worker = workers.start("--models", MODELS)
    wait_for(lambda: workers.problems() == [])
    assert workers.health() == (0, "healthy\n")
    execute(engine, "INSERT INTO article (title) VALUES ('a'), ('poison')")
    failed = "SELECT failed, pending FROM pgembed.status WHERE column_name = 'embedding'"
    wait_for(lambda: rows(engine, failed) == [(1, 1)])
    workers.beat_again()  # a row that was set aside is no fault of the worker's
    assert workers.problems() == []
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert "no worker runs" in workers.problems()[0]


def test_an_error_with_rows_pending_is_red(workers: Workers, engine: Engine) -> None:
    """The registry's worker has no encoder of that name; the one of the models could fill."""
    workers.start()
    other = workers.start("--models", MODELS)
    workers.beat_again()
    assert workers.problems() == []  # there is nothing to fill
    other.kill()
    other.wait()
    execute(engine, "INSERT INTO article (title) VALUES ('a')")
    wait_for(lambda: workers.problems() != [])
    what = "public.article.embedding: 1 row is pending, EncoderNotFoundError: no encoder 'hash'"
    assert what in workers.problems()[0]
    code, said = workers.health(grace=1)
    assert (code, f"unhealthy: {what}" in said) == (1, True)
    assert workers.problems(grace=600) == []


def test_an_encoder_that_hangs_is_red(workers: Workers, engine: Engine) -> None:
    workers.start("--models", MODELS, ENCODER_SECONDS="60")
    wait_for(lambda: workers.problems() == [])
    execute(engine, "INSERT INTO article (title) VALUES ('a')")
    wait_for(lambda: workers.problems() != [])
    assert "rows are claimed, and none gets filled" in workers.problems()[0]


def test_what_the_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beat = Heartbeat(tmp_path / "beats")
    beat.beat([State("a", time.time() - 10, "waits"), State("b", time.time(), "waits")])
    (file,) = (tmp_path / "beats").iterdir()
    (problem,) = problems(tmp_path / "beats", grace=5)
    assert problem.startswith("a: waits, for 1")
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"at": time.time() - 60}))
    (problem,) = problems(tmp_path / "beats", grace=30)
    assert "no heartbeat for 6" in problem
    beat.beat([])
    # One that was killed is not missed beside another that runs.
    dead = Popen(["true"])
    dead.wait()
    other = file.with_name(f"worker-{dead.pid}.json")
    other.write_text(json.dumps({"pid": dead.pid, "at": 0, "waiting": []}))
    assert problems(tmp_path / "beats", grace=100) == []
    assert not other.exists()
    # Nor is one whose number another process has by now.
    silent = json.loads(file.read_text()) | {"at": time.time() - 600, "started": "1"}
    file.write_text(json.dumps(silent))
    assert "no worker runs" in problems(tmp_path / "beats", grace=100)[0]
    file.write_text("{}")
    (problem,) = problems(tmp_path / "beats", grace=100)
    assert "not the heartbeat of a worker" in problem
    beat.stop()
    assert "no worker runs" in problems(tmp_path / "beats", grace=100)[0]
    # A folder that somebody else has made is neither written to nor believed.
    beat.beat([])
    monkeypatch.setattr(heartbeat, "_is_ours", lambda folder: False)
    assert "no worker runs" in problems(tmp_path / "beats", grace=100)[0]
    beat.beat([])
    assert "belongs to another user" in caplog.text
