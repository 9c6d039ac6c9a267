"""``pgembed classify`` and ``pgembed evaluate`` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pgembed.testing import HashEncoder
from tests.commands import call
from tests.tables import execute, model, rows


@pytest.fixture
def articles(engine: Engine) -> str:
    """Six articles of two texts, the labels of the last two missing; the URL."""
    Article = model(HashEncoder(8))
    Article.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Article(id=n, title="printer fire" if n % 2 else "news") for n in range(1, 7))
        session.add(Article(id=7, title=None))
        session.commit()
    execute(
        engine,
        "ALTER TABLE article ADD section text",
        "UPDATE article SET section = CASE id % 2 WHEN 1 THEN 'help' ELSE 'news' END WHERE id < 5",
    )
    return engine.url.render_as_string(hide_password=False)


def run(command: str, url: str, *options: str) -> str:
    shown = call(command, "article", "embedding", "section", "--url", url, *options)
    assert (shown.returncode, shown.stderr) == (0, "")
    return shown.stdout


def sections(engine: Engine) -> list[str | None]:
    return [row.section for row in rows(engine, "SELECT section FROM article ORDER BY id")]


def test_labels_are_listed_and_then_stored(articles: str, engine: Engine) -> None:
    before = sections(engine)
    found = json.loads(run("classify", articles, "--k", "2", "--json"))
    assert [(row["key"], row["label"], row["votes"], row["reason"]) for row in found] == [
        (5, "help", 2, None),
        (6, "news", 2, None),
        (7, None, 0, "no vector"),
    ]
    unsure = list(
        csv.DictReader(
            io.StringIO(
                run("classify", articles, "--csv", "--k", "4", "--weights", "uniform", "--min-margin", "0.5")
            )
        )
    )
    assert [(row["key"], row["label"], row["reason"]) for row in unsure] == [
        ("5", "", "low margin"),
        ("6", "", "low margin"),
        ("7", "", "no vector"),
    ]
    assert sections(engine) == before
    again = json.loads(run("classify", articles, "--k", "2", "--approximate", "--write", "--json"))
    assert again == found
    assert sections(engine) == [*before[:4], "help", "news", None]


def test_labels_are_evaluated(articles: str, tmp_path: Path) -> None:
    picture = tmp_path / "confusion.png"
    lines = run("evaluate", articles, "--k", "1", "--plot", str(picture)).splitlines()
    assert lines[0] == "4 rows, k = 1: accuracy 1.000, macro F1 1.000"
    assert [line.split() for line in lines[3:5]] == [
        ["min_share", "coverage", "accuracy"],
        ["0.0000", "1.0000", "1.0000"],
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(run("evaluate", articles, "--k", "1", "--apart", "0.99", "--json"))
    assert (found["accuracy"], found["rows"]) == (0, 4)
    held_out = json.loads(run("evaluate", articles, "--held-out", "0.5", "--json"))
    assert 0 < held_out["rows"] < 4
    apart = run("evaluate", articles, "--k", "1", "--apart", "0.99", "--csv")
    assert apart.splitlines() == ["label,predicted,rows", "help,news,2", "news,help,2"]


def test_nothing_is_stored_where_the_output_is_refused(articles: str, engine: Engine) -> None:
    before = sections(engine)
    options = ["--k", "2", "--write", "--json", "--csv"]
    shown = call("classify", "article", "embedding", "section", "--url", articles, *options)
    assert (shown.returncode, "choose one of --json and --csv" in shown.stderr) == (2, True)
    assert sections(engine) == before


def test_labels_of_other_types_beside_columns_of_any_names(engine: Engine) -> None:
    execute(
        engine,
        "CREATE TABLE item (key_0 integer PRIMARY KEY, found text, tags text[], vector vector(2))",
        "INSERT INTO item SELECT n, NULL, CASE WHEN n < 4 THEN ARRAY['a, b', '\"'] END, '[1,0]' "
        "FROM generate_series(1, 4) AS n",
    )
    url = engine.url.render_as_string(hide_password=False)
    shown = call("classify", "item", "vector", "tags", "--k", "2", "--write", "--csv", "--url", url)
    (found,) = csv.DictReader(io.StringIO(shown.stdout))
    assert json.loads(found["label"]) == ['"', "a, b"]
    assert rows(engine, "SELECT tags FROM item WHERE key_0 = 4") == [(['"', "a, b"],)]


def test_a_missing_label_is_an_error(articles: str) -> None:
    shown = call("classify", "article", "embedding", "topic", "--url", articles)
    assert (shown.returncode, shown.stderr.strip()) == (1, "pgembed: article has no column topic")
