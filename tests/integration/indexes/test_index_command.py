"""``pgembed index`` from end to end, on a table that no model declares."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types

import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typer.testing import CliRunner

from pgembed import HNSW, IVFFlat, Vector, embedding_column, indexes
from pgembed.cli.main import app
from pgembed.indexes import findings
from pgembed.indexes.standing import standing
from pgembed.testing import HashEncoder
from tests.tables import model

VERBS = ("paint", "sell", "fix", "clean", "buy", "draw", "rent", "lift")
NOUNS = ("house", "car", "table", "dress", "boat", "window", "bike", "lamp")


@pytest.fixture
def rows():
    """Where the index is searched, there have to be 2,000 for the planner to use it."""
    return 300


@pytest.fixture
def run(engine, fill, rows):
    fill(rows=rows)
    url = engine.url.render_as_string(hide_password=False)

    def command(*arguments, code=0, stream="stdout"):
        result = CliRunner().invoke(app, ["index", *arguments, "--url", url])
        assert result.exit_code == code, result.output
        return re.sub(r"[│\s]+", " ", str(getattr(result, stream))) if stream != "stdout" else result.stdout

    return command


@pytest.mark.parametrize("rows", [2000])
def test_from_plan_to_reindex(engine, run):
    item = ('"Item"', "vector")
    planned = json.loads(run("plan", *item, "--m", "8", "--workers", "0", "--json"))
    assert (planned["rows"], planned["parameters"]) == (2000, {"m": 8, "ef_construction": 64})
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


def test_the_index_that_a_model_declares(engine, run, tmp_path, monkeypatch):
    encoder = HashEncoder(16)

    def noted(index, metric="cosine"):
        class Base(DeclarativeBase):
            pass

        class Note(Base):
            __tablename__ = "Note"
            id: Mapped[int] = mapped_column(primary_key=True)
            words: Mapped[str]
            vec: Mapped[Vector | None] = embedding_column(
                "words", encoder=encoder, index=index, metric=metric
            )
            two: Mapped[Vector | None] = embedding_column("words", encoder=encoder)

        return Base, Note

    Base, Note = noted(HNSW(quantize="half", m=8))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Note(words=f"note {i}") for i in range(50))
        session.commit()
    models = types.ModuleType("models_of_notes")
    models.Base = Base
    monkeypatch.setitem(sys.modules, "models_of_notes", models)
    of_models = ("--models", "models_of_notes:Base")

    assert "halfvec" in run("plan", '"Note"', "vec", *of_models)
    created = json.loads(run("create", '"Note"', "vec", *of_models, "--json"))
    assert (created["index"], created["parameters"]["m"]) == ("ix_Note_vec_hnsw_half", 8)
    with Session(engine) as session:
        assert indexes.is_built(session.connection(), Note.vec)
    assert "already there" in run("create", '"Note"', "vec", *of_models)
    name = "ix_Note_vec_hnsw_half"
    for changed, metric, reason in (
        (HNSW(quantize="half", m=24, ef_construction=200), "cosine", "--m 24 --ef-construction 200` changes"),
        (HNSW(quantize="half", m=8), "l2", "in another form (hnsw, cosine, m = 8, "),
        (HNSW(m=8, name=name), "cosine", "ef_construction = 64, on ((vec)::halfvec(16)))"),
        (HNSW(quantize="half", m=8, where="id > 3"), "cosine", "in another form"),
        (IVFFlat(quantize="half", name=name), "cosine", "in another form"),
    ):
        models.Base, _ = noted(changed, metric)
        assert reason in run("create", '"Note"', "vec", *of_models, code=1, stream="exception")
    models.Base = Base
    wrong = run("create", '"Note"', "vec", *of_models, "--m", "16", code=2, stream="output")
    assert "leave the other options out" in wrong
    for place in (('"Note"', "two"), ('"Item"', "vector"), ("nothing", "vec")):
        assert "the models declare none" in run("plan", *place, *of_models, code=2, stream="output")


@pytest.mark.parametrize("rows", [2000])
def test_indexes_of_smaller_values_and_of_some_rows(run):
    item = ('"Item"', "vector")
    created = {}
    for form in (
        ["--quantize", "half"],
        ["--quantize", "bit", "--dimensions", "24"],
        ["--where", "id % 2 = 0"],
    ):
        planned = json.loads(run("plan", *item, *form, "--json"))
        created[form[1]] = json.loads(run("create", *item, *form, "--workers", "0", "--json"))
        assert created[form[1]]["size"] <= 1.1 * planned["disk"]
        again = json.loads(run("create", *item, *form, "--workers", "0", "--json"))
        assert again["index"] == created[form[1]]["index"]
    names = [facts["index"] for facts in created.values()]
    assert names == ["ix_Item_vector_hnsw_half", "ix_Item_vector_hnsw_24_bit", "ix_Item_vector_hnsw"]
    assert "name this one" in run("create", *item, code=2, stream="output")
    whole = json.loads(run("create", *item, "--index", "whole", "--workers", "0", "--json"))
    assert (whole["index"], whole["size"] > created["id % 2 = 0"]["size"]) == ("whole", True)
    for name in names[:2]:
        found = json.loads(run("recall", *item, "--index", name, "--queries", "20", "--k", "3", "--json"))
        assert found["index"] == name
    assert (
        json.loads(run("reindex", *item, "--index", names[1], "--m", "8", "--json"))["parameters"]["m"] == 8
    )
    assert "no vector index nothing" in run("recall", *item, "--index", "nothing", code=2, stream="output")


def test_an_existing_index_is_compared_with_the_one_asked_for(engine, run):
    item = ('"Item"', "vector")
    name = "ix_Item_vector_hnsw"
    assert json.loads(run("create", *item, "--workers", "0", "--json"))["built"]

    def found():
        with engine.connect() as connection:
            return {index.name: (index.oid, index.metric) for index in standing(connection, '"Item"')}

    before = found()
    for same in ((), ("--m", "16"), ("--metric", "cosine"), ("--index", name)):
        assert run("create", *item, *same).endswith(", already there\n")
        assert not json.loads(run("create", *item, *same, "--json"))["built"]
    refused = run("create", *item, "--m", "32", "--ef-construction", "200", code=1, stream="exception")
    assert "exists with other parameters (hnsw, cosine, m = 16, ef_construction = 64)" in refused
    command = re.search(r"`pgembed index (reindex .*?)`", refused)[1]
    for verb in ("plan", "create"):
        for others in (("--metric", "l2"), ("--method", "ivfflat", "--index", name)):
            refused = run(verb, *item, *others, code=2, stream="output")
            assert re.search(r"is another index \(hnsw, cosine, m = 16, .*\): name this one", refused)
    assert found() == before

    again = json.loads(run(*shlex.split(command), "--workers", "0", "--json"))
    assert (again["index"], again["parameters"]) == (name, {"m": 32, "ef_construction": 200})
    planned = json.loads(run("plan", *item, "--metric", "l2", "--index", "by_l2", "--json"))
    assert (planned["index"], planned["parameters"]) == ("by_l2", {"m": 16, "ef_construction": 64})
    run("create", *item, "--metric", "l2", "--index", "by_l2", "--workers", "0")
    assert [metric for _, metric in found().values()] == ["l2", "cosine"]
    assert run("create", *item, "--metric", "l2").startswith("by_l2 ")


def test_a_metric_has_more_than_one_name(engine, run):
    item = ('"Item"', "vector", "--json")
    for stands, asked in (("inner_product", "ip"), ("l2", "euclidean")):
        first = json.loads(run("create", *item, "--metric", stands, "--index", stands))
        again = json.loads(run("create", *item, "--metric", asked, "--index", stands))
        assert (first["built"], again["built"], again["index"]) == (True, False, stands)


def test_a_name_that_is_taken_is_refused(engine, run):
    with engine.begin() as connection:
        connection.execute(text('CREATE INDEX of_rows ON "Item" (id)'))
    refused = run("create", '"Item"', "vector", "--index", "of_rows", code=1, stream="exception")
    assert "another relation of the schema has this name" in refused


def test_recall_of_texts_and_its_drawing(engine, minilm, minilm_folder, tmp_path, monkeypatch):
    Page = model(minilm, table="page", index=HNSW())
    with Session(engine) as session:
        Page.metadata.create_all(session.connection())
        session.add_all(Page(title=f"how to {verb} a {noun}") for verb in VERBS for noun in NOUNS)
        session.commit()
        indexes.create(session.connection(), Page.embedding)
        session.commit()
    texts, drawn = tmp_path / "texts.txt", tmp_path / "drawn.png"
    texts.write_text("paint my house\n\nwhere can I sell a car\n")
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    url = engine.url.update_query_dict({"options": "-c enable_seqscan=off"})
    page = ("page", "embedding", "--url", url.render_as_string(hide_password=False))

    def command(*arguments, code=0):
        result = CliRunner().invoke(app, ["index", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    found = json.loads(command("recall", *page, "--texts", str(texts), "--k", "5", "--json"))
    assert (found["queries"], found["recall"]) == (2, 1)
    swept = json.loads(command("recall", *page, "--texts", str(texts), "--plot", str(drawn), "--json"))
    assert [each["value"] for each in swept] == [10]
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert "recall 1.000" in command("recall", *page, "--plot", str(drawn), "--queries", "5")
    tuned = json.loads(command("tune", *page, "--texts", str(texts), "--json"))
    assert tuned["unseen"]["queries"] == 1
    assert "leave --ef-search" in command("recall", *page, "--plot", "x.png", "--ef-search", "9", code=2)
    command("recall", "gone", *page[1:], "--plot", "x.png", code=1)
    command("recall", "gone", *page[1:], "--plot", "x.txt", code=1)  # refused before anything is looked at
    texts.write_text("\n")
    assert "no text" in command("recall", *page, "--texts", str(texts), code=2)
    with engine.begin() as connection:
        Page.metadata.drop_all(connection)


def test_texts_for_a_column_that_is_no_embedding_need_an_encoder(run, tmp_path):
    run("create", '"Item"', "vector", "--workers", "0")
    (tmp_path / "texts.txt").write_text("anything")
    run("recall", '"Item"', "vector", "--texts", str(tmp_path / "texts.txt"), code=2)


def test_check_says_what_is_wrong_and_exits_with_1(engine, run, monkeypatch):
    monkeypatch.setattr(findings, "BUGS", ())
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
    run("plan", "nothing", "vector", code=1)
    run("plan", '"Item"', "nothing", code=1)
    run("plan", '"Item"', "vector", "--method", "gin", code=2)
