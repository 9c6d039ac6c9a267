"""``pgembed dedup`` and ``pgembed match`` as a user meets them."""

from __future__ import annotations

import csv
import io
import json

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pgembed.testing import HashEncoder
from tests.commands import call
from tests.tables import execute, model, rows


@pytest.fixture
def shop(engine: Engine) -> str:
    """Articles with copies, and another table with two of their texts; the URL."""
    encoder = HashEncoder(8)
    for table, titles in (("article", ["a", "b", "a", "c", "b", "a"]), ("offer", ["c", "d", "a"])):
        Model = model(encoder, table=table)
        Model.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all(Model(title=title) for title in titles)
            session.commit()
    execute(engine, "ALTER TABLE article ADD rank integer", "UPDATE article SET rank = -id")
    return engine.url.render_as_string(hide_password=False)


def dedup(url: str, *options: str) -> str:
    shown = call("dedup", "article", "embedding", "--min-score", "0.99", "--url", url, *options)
    assert (shown.returncode, shown.stderr) == (0, "")
    return shown.stdout


def test_rows_to_drop(shop: str) -> None:
    found = json.loads(dedup(shop, "--json"))
    assert [(row["key"]["id"], row["kept_key"]["id"]) for row in found] == [(3, 1), (5, 2), (6, 1)]
    for options in (["--keep", "rank"], ["--keep", "id", "--descending"]):
        rows = list(csv.DictReader(io.StringIO(dedup(shop, "--csv", *options))))
        assert [(row["key"], row["kept_key"]) for row in rows] == [("3", "6"), ("2", "5"), ("1", "6")]
        assert rows[0]["score"] == "1.0000"
    lines = dedup(shop).splitlines()
    assert [line.split() for line in lines] == [
        ["key", "kept_key", "score"],
        ["3", "1", "1.0000"],
        ["5", "2", "1.0000"],
        ["6", "1", "1.0000"],
    ]


def test_what_postgres_refuses_is_shown_with_its_hint_alone(shop: str) -> None:
    shown = call("dedup", "article", "embedding", "--min-score", "7", "--url", shop)
    assert shown.returncode == 1
    assert [line.split(":")[0] for line in shown.stderr.splitlines()] == ["pgembed", "HINT"], shown.stderr


def test_merging_is_shown_and_then_done(shop: str, engine: Engine) -> None:
    execute(
        engine,
        "CREATE TABLE note (article_id integer REFERENCES article)",
        "INSERT INTO note VALUES (6), (5)",
    )
    before = rows(engine, "SELECT article_id FROM note ORDER BY 1")
    shown = json.loads(dedup(shop, "--merge", "--json"))
    assert shown == [
        {"table": "public.note", "reference": "note_article_id_fkey", "action": "moved", "rows": 2},
        {"table": "public.article", "reference": None, "action": "deleted", "rows": 3},
    ]
    assert rows(engine, "SELECT article_id FROM note ORDER BY 1") == before
    assert json.loads(dedup(shop, "--merge", "--yes", "--json")) == shown
    assert rows(engine, "SELECT article_id FROM note ORDER BY 1") == [(1,), (2,)]
    assert rows(engine, "SELECT id FROM article ORDER BY 1") == [(1,), (2,), (4,)]
    assert dedup(shop, "--merge", "--csv").splitlines() == [
        "table,reference,action,rows",
        "public.article,,deleted,0",
    ]


def test_pairs_and_groups(shop: str) -> None:
    pairs = json.loads(dedup(shop, "--show", "pairs", "--json"))
    assert {(row["left_key"]["id"], row["right_key"]["id"]) for row in pairs} == {
        (1, 3),
        (1, 6),
        (3, 6),
        (2, 5),
    }
    groups = dedup(shop, "--show", "groups", "--csv").splitlines()
    assert dedup(shop, "--show", "pairs", "--csv").splitlines()[0] == "left_key,right_key,score"
    assert groups == ["group_id,key", "1,1", "1,3", "1,6", "2,2", "2,5"]


def test_matches(shop: str) -> None:
    options = ["article", "embedding", "offer", "embedding", "--url", shop, "--json"]
    found = json.loads(call("match", *options, "--min-score", "0.99").stdout)
    assert [(row["left_key"]["id"], row["right_key"]["id"]) for row in found] == [(1, 3), (4, 1)]
    found = json.loads(call("match", *options, "--min-score", "0.99", "--no-one-to-one").stdout)
    assert [row["left_key"]["id"] for row in found] == [1, 3, 4, 6]
    assert call("match", *options, "--margin", "1000").stdout == "[]\n"
    none = call("match", *options[:-1], "--csv", "--margin", "1000").stdout
    assert none == "left_key,right_key,score,margin\n"


def test_clusters(shop: str) -> None:
    options = ["cluster", "article", "embedding", "--url", shop, "--min-score", "0.99", "--min-size", "2"]
    lines = call(*options, "--csv").stdout.splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines] == ["cluster,key", "1,1", "1,3", "1,6", "2,2", "2,5"]
    assert call(*options[:-1], "4", "--json").stdout == "[]\n"


def test_clusters_are_written(shop: str, engine: Engine) -> None:
    execute(engine, "ALTER TABLE article ADD topic text", "UPDATE article SET topic = 'old'")
    common = ["cluster", "article", "embedding", "--url", shop, "--write", "topic", "--json"]
    for options, labels in (
        (["--min-score", "0.99", "--min-size", "2"], ["1", "2", "1", None, "2", "1"]),
        (["--kmeans", "3"], ["1", "2", "1", "3", "2", "1"]),
    ):
        before = rows(engine, "SELECT topic FROM article ORDER BY id")
        tried = json.loads(call(*common, *options).stdout)
        assert rows(engine, "SELECT topic FROM article ORDER BY id") == before
        (done,) = json.loads(call(*common, *options, "--yes").stdout)
        assert [done] == tried
        assert rows(engine, "SELECT topic FROM article ORDER BY id") == [(label,) for label in labels]
        in_one = len(labels) - labels.count(None)
        assert (done["column"], done["rows"], done["skipped"]) == ("topic", in_one, 0)
        assert done["changed"] == sum(old != label for (old,), label in zip(before, labels, strict=True))
        assert done["clusters"] == max(int(label) for label in labels if label)


def test_clusters_of_a_table_with_strange_names_are_written(engine: Engine) -> None:
    name, columns = 'odd."my ""t"" %s"', '"a key" inet, "b%c" text, "ve ctor" halfvec(3), "to pic%" smallint'
    execute(
        engine,
        "CREATE SCHEMA odd",
        f'CREATE TABLE {name} ({columns}, PRIMARY KEY ("a key", "b%c"))',
        f"INSERT INTO {name} SELECT ('10.0.0.' || n / 2)::inet, 'it''s \\\"' || n,"
        " ARRAY[n % 3, n % 3 - 1, 1]::real[]::vector::halfvec FROM generate_series(1, 9) AS n WHERE n <> 3",
    )
    url = engine.url.render_as_string(hide_password=False)
    common = ["cluster", name, "ve ctor", "--url", url, "--write", "to pic%", "--yes", "--csv"]
    groups = f'SELECT count(DISTINCT "ve ctor"::text), count(*) FROM {name} GROUP BY "to pic%"'
    for options in (["--kmeans", "3"], ["--min-score", "0.99", "--min-size", "2"]):
        execute(engine, f'UPDATE {name} SET "to pic%" = NULL')
        shown = call(*common, *options)
        assert shown.stdout.splitlines() == ["column,clusters,rows,changed,skipped", "to pic%,3,8,8,0"]
        assert sorted(rows(engine, groups)) == [(1, 2), (1, 3), (1, 3)]


def test_clusters_by_kmeans(shop: str) -> None:
    shown = call("cluster", "article", "embedding", "--url", shop, "--kmeans", "3", "--csv")
    assert shown.stdout.splitlines() == ["cluster,size", "1,3", "2,2", "3,1"]
    assert "18/18" in shown.stderr or "24/24" in shown.stderr


def test_wrong_usage_of_clusters(shop: str) -> None:
    for options, code, message in (
        ([], 2, "expected one of --min-score and --kmeans"),
        (["--min-score", "0.9", "--kmeans", "3"], 2, "expected one of --min-score and --kmeans"),
        (["--kmeans", "3", "--min-size", "3"], 2, "has no effect with --kmeans"),
        (["--kmeans", "3", "--yes"], 2, "has no effect without --write"),
        (["--kmeans", "7"], 1, "has 6 rows"),
        (["--kmeans", "3", "--write", "nothing"], 1, "has no column nothing"),
        (["--kmeans", "3", "--write", "title"], 2, "title is a source of article.embedding"),
        (["--min-score", "0.9", "--write", "id"], 1, "is part of a key"),
        (["--min-score", "2", "--write", "rank"], 1, "min_score is 2"),
    ):
        shown = call("cluster", "article", "embedding", "--url", shop, *options)
        assert (shown.returncode, message in shown.stderr) == (code, True), shown.stderr


def test_nothing_is_changed_where_the_output_is_refused(shop: str, engine: Engine) -> None:
    options = ["--min-score", "0.99", "--merge", "--yes", "--url", shop]
    for formats in (["--json", "--csv"], ["--csv", "--json"]):
        shown = call("dedup", "article", "embedding", *options, *formats)
        assert (shown.returncode, "choose one of --json and --csv" in shown.stderr) == (2, True)
    assert rows(engine, "SELECT count(*) FROM article") == [(6,)]


def test_keys_of_several_columns(engine: Engine) -> None:
    execute(
        engine,
        'CREATE TABLE part (document text, "no" integer, vector vector(2), PRIMARY KEY (document, "no"))',
        "INSERT INTO part VALUES ('a, \"b\"', 1, '[1,0]'), ('a, \"b\"', 2, '[1,0]')",
    )
    url = engine.url.render_as_string(hide_password=False)
    shown = call("dedup", "part", "vector", "--min-score", "0.99", "--csv", "--url", url)
    (found,) = csv.DictReader(io.StringIO(shown.stdout))
    assert json.loads(found["key"]) == {"document": 'a, "b"', "no": 2}
    assert json.loads(found["kept_key"]) == {"document": 'a, "b"', "no": 1}


def test_matches_of_no_score(shop: str) -> None:
    for option, number, message in (
        ("--min-score", "2", "min_score is 2, which is not a score"),
        ("--margin", "nan", "margin is NaN, it must be a number"),
    ):
        shown = call("match", "article", "embedding", "offer", "embedding", "--url", shop, option, number)
        assert (shown.returncode, message in shown.stderr) == (1, True), shown.stderr


def test_wrong_usage(shop: str) -> None:
    common = ["dedup", "article", "embedding", "--url", shop, "--min-score"]
    for options, code, message in (
        (["0.9", "--json", "--csv"], 2, "choose one of --json and --csv"),
        (["0.9", "--show", "pairs", "--keep", "rank"], 2, "has no effect with --show pairs"),
        (["0.9", "--yes"], 2, "has no effect without --merge"),
        (["0.9", "--show", "groups", "--merge"], 2, "has no effect with --show groups"),
        (["2"], 1, "min_score is 2"),
        (["0.9", "--keep", "nothing"], 1, "has no column nothing"),
    ):
        shown = call(*common, *options)
        assert (shown.returncode, message in shown.stderr) == (code, True), shown.stderr
