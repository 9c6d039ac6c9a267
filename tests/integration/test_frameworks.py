"""Models of SQLModel, Pydantic, FastAPI, dataclasses and attrs: what docs/models.md says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Optional

import attrs
import numpy as np
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import URL, Column, Engine, Integer, Table, Text, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, registry
from sqlmodel import Field, SQLModel
from sqlmodel import Session as SQLModelSession

from pgembed import Vector, embedding_column
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(4)
WORDS = ENCODER.encode_documents(["some words"])[0]


class Hidden(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    words: str
    vec: Vector | None = Field(
        default=None,
        sa_column=embedding_column("words", encoder=ENCODER, name="vec").column,
        exclude=True,
        repr=False,
    )


class Shown(SQLModel, table=True):
    """A class whose vector is part of what it says of itself."""

    id: int | None = Field(default=None, primary_key=True)
    words: str
    vec: Vector | None = Field(
        default=None, sa_column=embedding_column("words", encoder=ENCODER, name="vec").column
    )


class NoteIn(BaseModel):
    words: str
    vec: Vector | None = None


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    vec: Optional[Vector]  # noqa: UP045


@pytest.fixture(scope="module")
def engine(module_url: URL) -> Iterator[Engine]:
    engine = create_engine(module_url)
    SQLModel.metadata.create_all(engine, [Hidden.__table__, Shown.__table__])
    yield engine
    engine.dispose()


@pytest.fixture
def client(engine: Engine) -> TestClient:
    def session() -> Iterator[SQLModelSession]:
        with SQLModelSession(engine) as session:
            yield session

    opened = Depends(session)
    app = FastAPI()

    def stored(model: type[Any], given: NoteIn, session: SQLModelSession) -> Any:
        note = model(**given.model_dump(exclude_none=True))
        session.add(note)
        session.commit()
        session.refresh(note)
        return note

    @app.post("/notes")
    def create(given: NoteIn, session: SQLModelSession = opened) -> Hidden:
        return stored(Hidden, given, session)  # type: ignore[no-any-return]

    @app.post("/shown")
    def create_shown(given: NoteIn, session: SQLModelSession = opened) -> Shown:
        note = stored(Shown, given, session)
        session.refresh(note, ["vec"])
        return note  # type: ignore[no-any-return]

    @app.post("/out", response_model=NoteOut)
    def create_out(given: NoteIn, session: SQLModelSession = opened) -> Any:
        return stored(Hidden, given, session)

    @app.get("/notes")
    def read(session: SQLModelSession = opened) -> list[Hidden]:
        return list(session.scalars(select(Hidden)))

    return TestClient(app)


def test_responses_are_without_the_vector_by_the_recipe(client: TestClient) -> None:
    created = client.post("/notes", json={"words": "some words"})
    assert (created.status_code, created.json().keys()) == (200, {"id", "words"})
    assert {frozenset(note) for note in client.get("/notes").json()} == {frozenset({"id", "words"})}


@pytest.mark.parametrize("path", ["/shown", "/out"])
def test_responses_with_the_vector_hold_numbers(client: TestClient, path: str) -> None:
    created = client.post(path, json={"words": "some words"})
    assert created.json()["vec"] == WORDS.tolist()


def test_a_request_may_bring_a_vector(client: TestClient) -> None:
    own = [1.0, 2.5, 0.0, -1.0]
    assert client.post("/out", json={"words": "mine", "vec": own}).json()["vec"] == own
    refused = client.post("/out", json={"words": "mine", "vec": ["x"]})
    assert refused.status_code == 422
    assert "not a vector" in refused.json()["detail"][0]["msg"]


def test_the_schema_of_an_application_says_numbers(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    numbers = {"items": {"type": "number"}, "type": "array"}
    assert schemas["NoteOut"]["properties"]["vec"]["anyOf"] == [numbers, {"type": "null"}]


def test_a_loaded_vector_is_part_of_the_json_of_its_model(engine: Engine) -> None:
    with SQLModelSession(engine) as session:
        for model in (Hidden, Shown):
            session.add(note := model(words="some words"))
            session.commit()
            assert np.array_equal(note.vec, WORDS)  # type: ignore[arg-type]
            expected = {"id": note.id, "words": "some words"}
            if model is Shown:
                expected["vec"] = WORDS.tolist()
            assert json.loads(note.model_dump_json()) == note.model_dump(mode="json") == expected
        assert "vec" not in repr(session.scalars(select(Hidden)).first())


def test_pydantic_models_take_and_give_vectors(engine: Engine) -> None:
    vectors = TypeAdapter(list[Vector | None])
    loaded = WORDS.copy()
    loaded.flags.writeable = False
    given: list[Any] = [[1, 2], (1, 2), "[1,2]", np.array([1, 2], dtype=">f8"), None, loaded]
    found = vectors.validate_python(given)
    assert found[5] is loaded  # what was loaded is still known as such
    assert all(vector.flags.writeable and vector.tolist() == [1, 2] for vector in found[:4])
    assert vectors.validate_json(vectors.dump_json(found))[4] is None
    assert vectors.dump_python(found)[5] is loaded
    assert vectors.dump_json([[1, 2]]) == b"[[1.0,2.0]]"  # a list in a model that was not validated
    assert vectors.json_schema()["items"]["anyOf"][0]["items"] == {"type": "number"}
    for bad in ([[1, 2]], [None], [np.inf], 3, "x", {}):
        with pytest.raises(ValidationError):
            TypeAdapter(Vector).validate_python(bad)
    with Session(engine) as session:
        session.add(note := Shown(words="some words"))
        session.flush()
        assert np.array_equal(NoteOut.model_validate(note).vec, WORDS)


def test_dataclasses(engine: Engine) -> None:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Data(Base):
        __tablename__ = "data"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column(
            "words", encoder=ENCODER, init=False, repr=False, compare=False
        )

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Data("some words"), Data("other")])
        session.commit()
        one, two = session.scalars(select(Data).order_by(Data.id))
        assert "vec" not in one.__dict__
        assert np.array_equal(one.vec, WORDS)  # type: ignore[arg-type]
        assert two.vec is not None
        assert one != two
        assert repr(one).endswith("Data(id=1, words='some words')")


def test_attrs(engine: Engine) -> None:
    mappers = registry()
    table = Table(
        "attrs_note",
        mappers.metadata,
        Column("id", Integer, primary_key=True),
        Column("words", Text),
        embedding_column("words", encoder=ENCODER, name="vec").column,
    )

    @attrs.define(slots=False, eq=False)
    class Attrs:
        words: str
        id: int | None = None

    mappers.map_imperatively(Attrs, table)
    mappers.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(note := Attrs("some words"))
        session.commit()
        assert np.array_equal(note.vec, WORDS)  # type: ignore[attr-defined]
