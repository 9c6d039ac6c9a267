"""Columns whose encoder has options are served from the registry alone, as by the code that declared them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from pgembed import Encoder
from tests.commands import call
from tests.tables import model

TEXTS = ("Bread is " + "baked " * 30, "Soup of the day", "An apple pie")


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 16},
        {"precision": "int8"},
        {"dimensions": 128, "document_prompt": "passage: ", "query_prompt": "query: "},
    ],
)
def test_commands_need_no_models(engine: Engine, minilm_folder: Path, options: dict[str, Any]) -> None:
    encoder = Encoder(minilm_folder, **options)
    assert encoder.fingerprint != Encoder(minilm_folder).fingerprint
    model(encoder, table="recipe", source="words", vector="vec").metadata.create_all(engine)
    environment = {
        "PGEMBED_ENCODERS": str(minilm_folder.parent),
        "PGEMBED_URL": engine.url.render_as_string(hide_password=False),
    }

    def pgembed(*arguments: str) -> str:
        done = call(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def insert(words: tuple[str, ...]) -> None:
        with engine.begin() as connection:
            rows = [{"words": each} for each in words]
            connection.execute(text("INSERT INTO recipe (words) VALUES (:words)"), rows)

    insert(TEXTS[:2])
    assert "2 rows filled" in pgembed("backfill", "recipe", "vec")
    insert(TEXTS[2:])
    pgembed("worker", "--once")
    with engine.connect() as connection:
        stored = connection.scalars(text("SELECT CAST(vec AS real[]) FROM recipe ORDER BY id")).all()
    expected = encoder.encode_documents(TEXTS)
    # 8 bit vectors depend a little on the texts of their batch.
    tolerance = 0.05 if "precision" in options else 1e-5
    np.testing.assert_allclose(np.array(stored), expected, atol=tolerance)

    (row,) = json.loads(pgembed("status", "--json"))
    assert (row["fresh"], row["cut"]) == (3, 1 if "max_tokens" in options else 0)
    found = json.loads(pgembed("search", "recipe", "vec", "something sweet", "--json"))
    scores = {each["words"]: each["score"] for each in found}
    (query,) = encoder.encode_queries(["something sweet"])
    assert [scores[each] for each in TEXTS] == pytest.approx(list(expected @ query), abs=max(tolerance, 1e-4))
    # By another name it is the same encoder.
    folder = ("--encoder", str(minilm_folder))
    assert json.loads(pgembed("search", "recipe", "vec", "something sweet", "--json", *folder)) == found
    assert "vec_2" in pgembed("reembed", "plan", "recipe", "vec", *folder)
