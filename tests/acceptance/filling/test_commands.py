"""`pgembed worker`, `backfill` and `failures` as processes."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from pgembed import Encoder
from pgembed.filling import worker as module
from pgembed.filling.cycle import Settings
from pgembed.testing import HashEncoder
from tests.commands import call as command
from tests.commands import run, start, wait_for
from tests.tables import execute, model

from .models import MODELS, Base

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def location(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def call(location: str) -> Call:
    """``pgembed ...`` on the database: exit code, output, errors."""

    def called(*arguments: str) -> tuple[int, str, str]:
        done = command(*arguments, PGEMBED_URL=location)
        return done.returncode, done.stdout, done.stderr

    return called


def one(engine: Engine, statement: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(text(statement)).one()


def status(engine: Engine) -> Any:
    return tuple(
        one(engine, "SELECT fresh, pending, failed FROM pgembed.status WHERE column_name = 'embedding'")
    )


@pytest.fixture
def articles(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    execute(engine, "INSERT INTO article (title) SELECT 'title ' || i FROM generate_series(1, 300) i")
    return engine


def test_backfill_fills_and_says_how_much(articles: Engine, location: str, call: Call) -> None:
    name = "public.article.embedding"
    _, dry, _ = call("backfill", "--models", MODELS, "--dry-run")
    assert re.search(rf"{name}: 300 rows to fill, [\d,]+ rows/s, about 0:00:0\d", dry)
    assert status(articles) == (0, 300, 0)

    where = ("--where", "id <= 50 OR id > 250", "--limit", "80")
    assert call("backfill", "article", "--models", MODELS, *where)[1] == f"{name}: 80 rows filled\n"
    between = "SELECT count(*) FROM article WHERE id BETWEEN 51 AND 250 AND embedding IS NOT NULL"
    assert one(articles, between) == (0,)

    execute(articles, "UPDATE article SET title = 'poison' WHERE id = 200")
    rest = run("backfill", "--models", MODELS, PGEMBED_URL=location)
    assert rest.stdout == f"{name}: 219 rows filled, 1 failed (see `pgembed failures list`)\n"
    assert rest.returncode == 1
    logged = f"WARNING event=failed column={name!r} key=[200] error='poison'"
    assert logged in rest.stderr.splitlines()
    assert status(articles) == (299, 1, 1)
    assert call("backfill", "--models", MODELS)[:2] == (1, f"{name}: 0 rows filled, 1 still pending\n")
    assert run("worker", "--once", "--models", MODELS, PGEMBED_URL=location).returncode == 1
    _, shown, _ = call("status")
    assert re.search(r"article\.embedding +hash +\w{12} +300 +299 +1 +1 +hnsw", shown)


def test_failures_are_listed_and_tried_again(articles: Engine, call: Call) -> None:
    def attempts() -> dict[str, int]:
        found = json.loads(call("failures", "list", "--json")[1])
        return {failure["key"]: failure["attempts"] for failure in found}

    execute(articles, "UPDATE article SET title = 'poison' WHERE id IN (7, 8)")
    assert "no failures" in call("failures", "list")[1]
    call("backfill", "--models", MODELS)
    _, shown, _ = call("failures", "list", "article", "embedding")
    assert re.search(r"article\.embedding +\[7\] +1 +\d{4}-.*RuntimeError: poison", shown)
    assert attempts() == {"[7]": 1, "[8]": 1}
    execute(articles, "UPDATE pgembed.failure SET error = repeat('long ', 100) || 'end'")
    assert f"{'long ' * 100}end" in call("failures", "list")[1].splitlines()[1]
    execute(articles, r"UPDATE pgembed.failure SET error = E'\x1b[2Jgone'")
    assert r"\u001b[2Jgone" in call("failures", "list")[1]
    assert "\x1b" not in call("failures", "list")[1]
    for key in ("garbage", "7", "[9]"):
        refused = (1, "", f"pgembed: no failed row has the key {key}; keys look like [8]\n")
        assert call("failures", "retry", "article", "--key", key) == refused
    assert "1 row will be tried again" in call("failures", "retry", "article", "--key", "[7]")[1]
    call("backfill", "--models", MODELS)
    assert attempts() == {"[7]": 2, "[8]": 1}
    assert "2 rows will be tried again" in call("failures", "retry")[1]
    execute(articles, "DELETE FROM pgembed.failure")
    assert "; none has failed" in call("failures", "retry", "--key", "[7]")[2]
    assert "no table nowhere" in call("failures", "list", "nowhere")[2]


def test_errors_are_one_line_and_an_exit_code(articles: Engine, call: Call) -> None:
    for arguments, message in (
        # The registry names an encoder that has no weights on this machine.
        (("backfill",), "no encoder 'hash'"),
        (("backfill", "nowhere"), "there are: public.article.embedding"),
        (("backfill", "article", "title"), "article title is not an embedding column"),
        (("backfill", "--where", "true"), "needs a TABLE"),
        (("backfill", "--models", "nonsense:Base"), "nonsense"),
        (("backfill", "article", "--models", MODELS, "--where", "nonsense"), '"nonsense" does not exist'),
    ):
        code, out, err = call(*arguments)
        assert code != 0
        assert message in err
        assert "Traceback" not in err
        assert out == ""


def test_the_worker_fills_from_the_registry_alone(
    engine: Engine, location: str, minilm_folder: Path, minilm: Encoder
) -> None:
    """It has none of the models, and a table whose encoder it lacks does not stop it."""

    page = model(minilm, table="page", source="words", fill="worker")
    broken = model(HashEncoder(4, "not here"), table="broken", source="words", vector="vector")
    for made in (page, broken):
        made.metadata.create_all(engine)
    execute(
        engine,
        *(f"INSERT INTO {name} (words) VALUES ('one'), (NULL), ('three')" for name in ("page", "broken")),
    )
    done = run("worker", "--once", PGEMBED_URL=location, PGEMBED_ENCODERS=str(minilm_folder.parent))
    assert done.returncode == 1
    assert "event=error column='public.broken.vector'" in done.stderr
    assert re.search(r"event=filled column='public.page.embedding' rows=2 failed=0", done.stderr)
    assert all(line.startswith("time=") for line in done.stderr.splitlines())
    assert status(engine) == (3, 0, 0)
    with engine.connect() as connection:
        vector = connection.execute(text("SELECT embedding::text FROM page WHERE id = 3")).scalar_one()
    assert json.loads(vector) == pytest.approx(minilm.encode_documents(["three"])[0].tolist(), abs=1e-5)


def test_the_worker_runs_until_it_is_stopped(articles: Engine, location: str, tmp_path: Path) -> None:
    log, texts = tmp_path / "log", tmp_path / "texts"
    environment = {"PGEMBED_URL": location, "ENCODER_LOG": str(texts)}
    worker = start("worker", "--models", MODELS, "--poll", "0.05", log=log, **environment)
    wait_for(lambda: status(articles)[1] == 0)
    execute(articles, "INSERT INTO article (title) VALUES ('poison'), ('later')")
    wait_for(lambda: status(articles) == (301, 1, 1))
    execute(articles, "UPDATE article SET title = 'mended' WHERE title = 'poison'")
    wait_for(lambda: status(articles) == (302, 0, 0))
    execute(articles, "UPDATE article SET body = NULL")
    time.sleep(0.3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    # "text" is what the encoder is asked when it has failed.
    encoded = [line for line in texts.read_text().splitlines() if line != "text"]
    assert len(encoded) == len(set(encoded)) == 302
    assert one(articles, "SELECT count(*) FROM pgembed.lease") == (0,)
    assert "event=failed" in log.read_text()


def test_sigterm_writes_what_was_encoded(articles: Engine, location: str, tmp_path: Path) -> None:
    log, texts = tmp_path / "log", tmp_path / "texts"
    environment = {"PGEMBED_URL": location, "ENCODER_LOG": str(texts), "ENCODER_SECONDS": "1"}
    worker = start("worker", "--models", MODELS, log=log, **environment)
    wait_for(lambda: one(articles, "SELECT count(*) FROM pgembed.lease") != (0,))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    encoded = len(texts.read_text().splitlines())
    assert 0 < encoded < 300
    assert status(articles) == (encoded, 300 - encoded, 0)
    assert one(articles, "SELECT count(*) FROM pgembed.lease") == (0,)


def test_a_table_made_later_is_found(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one whose declaration changes is filled by the new one."""
    monkeypatch.setattr(module, "_LOOK", 0.1)
    worker = module.Worker(engine, settings=Settings(poll=0.02))
    encoders = {name: HashEncoder(4, name) for name in ("one", "two")}
    monkeypatch.setattr("pgembed.Encoder.open", lambda self: None)
    monkeypatch.setattr(
        "pgembed.Encoder.encode_documents", lambda self, texts: encoders[self.name].encode_documents(texts)
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        for name in encoders:
            execute(engine, "DROP TABLE IF EXISTS page")
            model(encoders[name], table="page", source="words").metadata.create_all(engine)
            execute(engine, "INSERT INTO page (words) VALUES ('x')")
            wait_for(lambda: status(engine) == (1, 0, 0))
            assert encoders[name].calls[-1] == ("x",)
    finally:
        worker.stop()
        thread.join()
