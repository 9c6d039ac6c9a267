"""Columns that are called as parts of the searches' SQL are, as whatever column they stand."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import Column, Engine, MetaData, String, Table, func, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, aliased, registry

from pgembed import HNSW, embedding_column
from pgembed.columns import bound
from pgembed.queries import (
    centroid_classify,
    duplicate_groups,
    hybrid_search,
    knn_classify,
    knn_classify_many,
    label_issues,
    near_duplicates,
    outliers,
    representatives,
    semantic_search,
    zero_shot,
)
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(8)
TEXTS = ["a red apple", "a red cherry", "a blue whale", "a blue shark"]


def statements(vector, text, label):
    """One statement for each form of SQL that the helpers make, by name."""
    made = {
        f"semantic {mode}": semantic_search(vector, "red", mode=mode, max_distance=1, offset=1)
        for mode in ("exact", "approximate")
    }
    made["hybrid"] = hybrid_search(vector, "red", text=[text, label])
    made["classify"] = knn_classify(vector, "red", label=label)
    made["classify many"] = knn_classify_many(vector, queries=["red"], label=label, k=2, prior="balanced")
    made["zero shot"] = zero_shot(vector, {"fruit": ["apple", "cherry"], "animal": "whale"})
    made["centroids"] = centroid_classify(
        vector, queries=["red"], label=label, texts={"apple": "fruit"}, max_distance=2
    )
    made["issues"] = label_issues(vector, label=label, k=2, apart=text)
    made["outliers"] = outliers(vector, k=2)
    made["representatives"] = representatives(vector, k=2)
    for mode in ("exact", "auto"):
        made[f"pairs {mode}"] = near_duplicates(vector, min_score=0.1, mode=mode)
        made[f"groups {mode}"] = duplicate_groups(vector, min_score=0.1, mode=mode)
    return made


def table(key: str, vector: str, *others: str) -> Table:
    made = Table(
        "page",
        MetaData(),
        Column(key, String, primary_key=True),
        *(Column(other, String) for other in others),
        embedding_column(others[0], encoder=ENCODER, index=HNSW(), name=vector).column,
    )
    assert bound(made.c[vector])
    return made


def own_names() -> list[str]:
    """What the SQL calls its columns, aliases, common table expressions and parameters."""
    plain = table("id", "embedding", "title", "topic")
    found: set[str] = set()
    for statement in statements(plain.c.embedding, plain.c.title, plain.c.topic).values():
        compiled = statement.compile(dialect=postgresql.dialect())
        found |= {*compiled.bind_names.values(), *re.findall(r"\bAS \"?([a-z]\w*)", str(compiled))}
        found |= set(re.findall(r"(?:WITH|RECURSIVE|,)\s+(\w+)(?:\(.*?\))? AS ", str(compiled)))
    return sorted(found - set(plain.c.keys()))


NAMES = own_names()


def test_the_names_are_found() -> None:
    known = {"distance", "score", "vector_rank", "key_1", "payload_1", "query_1", "rows_1", "numbers", "n"}
    assert known | {"pgembed_ann_1", "pgembed_settings_1"} <= set(NAMES)


@pytest.mark.parametrize(("key", "vector"), [("key_1", "score"), ("score", "distance")])
def test_columns_of_the_same_names(engine: Engine, key: str, vector: str) -> None:
    names = ["title", "topic", *(name for name in NAMES if name not in (key, vector))]
    named, plain = table(key, vector, *names), table("id", "embedding", "title", "topic")
    rows = [
        {
            "id": str(n),
            "title": title,
            "topic": title.split()[1],
            "embedding": ENCODER.encode_documents([title])[0],
        }
        for n, title in enumerate(TEXTS)
    ]
    results: list[dict[str, list[list[str]]]] = []
    for made, key_name, vector_name in ((plain, "id", "embedding"), (named, key, vector)):
        made.metadata.create_all(engine)
        values = [
            {key_name if k == "id" else vector_name if k == "embedding" else k: v for k, v in row.items()}
            for row in rows
        ]
        entity = type("Page", (), {})
        registry(metadata=made.metadata).map_imperatively(entity, made)
        found: dict[str, list[list[str]]] = {}
        with Session(engine) as session:
            session.connection().execute(insert(made), values)
            for source in (made.c, aliased(entity)):
                vectors, title, topic = (getattr(source, name) for name in (vector_name, "title", "topic"))
                for name, statement in statements(vectors, title, topic).items():
                    columns = list(statement.subquery().c)
                    width = {"semantic": 2, "hybrid": 3}.get(name.split()[0])
                    of_sub = session.execute(select(*columns[-width:] if width else columns)).all()
                    assert session.scalar(select(func.count()).select_from(statement.cte())) == len(of_sub)
                    executed = session.execute(statement)
                    again = [row[-width:] if width else row for row in executed]
                    assert sorted(map(str, again)) == sorted(map(str, of_sub))
                    found.setdefault(name, []).append(sorted(map(str, of_sub)))
        results.append(found)
        made.metadata.drop_all(engine)
    assert results[0] == results[1]
    assert all(len(found) == 2 and found[0] for found in results[0].values())
