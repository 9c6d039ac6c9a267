"""``pgembed index`` from end to end, on a table that no model declares."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from pgembed.cli.main import app
from pgembed.indexes import checking


@pytest.fixture
def run(engine, fill):
    fill(rows=6000)
    url = engine.url.render_as_string(hide_password=False)

    def command(*arguments, code=0):
        result = CliRunner().invoke(app, ["index", *arguments, "--url", url])
        assert result.exit_code == code, result.output
        return result.stdout

    return command


def test_from_plan_to_reindex(engine, run):
    item = ('"Item"', "vector")
    planned = json.loads(run("plan", *item, "--m", "8", "--workers", "0", "--json"))
    assert (planned["rows"], planned["parameters"]) == (6000, {"m": 8, "ef_construction": 64})
    assert "maintenance_work_mem" in run("plan", *item)

    created = json.loads(run("create", *item, "--m", "8", "--workers", "0", "--json"))
    assert created["parameters"] == {"m": 8, "ef_construction": 64}
    assert created["size"] == pytest.approx(planned["disk"], rel=0.1)
    name = created["index"]
    assert name == "ix_Item_vector_hnsw"

    measured = json.loads(run("recall", *item, "--queries", "40", "--ef-search", "20", "--json"))
    assert (measured["index"], measured["value"], measured["queries"]) == (name, 20, 40)
    assert "recall" in run("recall", *item, "--queries", "10", "--k", "3")
    tuned = json.loads(run("tune", *item, "--target-recall", "0.9", "--queries", "60", "--json"))
    assert tuned["reached"]
    assert "in a query: ef_search=" in run("tune", *item, "--target-recall", "0.5", "--queries", "20")

    again = json.loads(run("reindex", *item, "--m", "12", "--workers", "0", "--json"))
    assert (again["index"], again["parameters"]) == (name, {"m": 12, "ef_construction": 64})


def test_check_says_what_is_wrong_and_exits_with_1(engine, run, monkeypatch):
    monkeypatch.setattr(checking, "BUGS", ())
    run("create", '"Item"', "vector", "--workers", "0")
    assert "nothing is wrong" in run("check")
    assert json.loads(run("check", "--json")) == []
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indrelid = '\"Item\"'::regclass")
        )
        connection.execute(text("UPDATE pg_index SET indisvalid = true WHERE indisprimary"))
    assert "[invalid] ix_Item_vector_hnsw" in run("check", code=1)
    assert [finding["code"] for finding in json.loads(run("check", "--json", code=1))] == ["invalid"]


def test_wrong_usage(run):
    run("plan", "nothing", "vector", code=2)
    run("plan", '"Item"', "nothing", code=2)
    run("plan", '"Item"', "vector", "--method", "gin", code=2)
