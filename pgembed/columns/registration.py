"""The registration of an embedding column: the JSON in the comment on its pending index.

It is written when the index is created, and read strictly. The owner of a table can write any comment there,
so nothing in it is trusted. The same rules in SQL are ``pgembed.registration_problem()``, in
``sql/10_embedding_columns.sql``; a test compares the two. Unknown keys come from newer versions, and are
allowed.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping
from typing import Any, TypeAlias

from sqlalchemy import String, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement

from pgembed.columns.embedding import PendingIndex
from pgembed.columns.names import LONGEST_NAME
from pgembed.columns.types import is_postgres
from pgembed.constants import MAX_DIMENSIONS
from pgembed.encoders import Encoder
from pgembed.metrics import metrics_of

Facts: TypeAlias = dict[str, Any]

#: How our comments begin.
_BEGINNING = '{"pgembed":'
_LONGEST = 65536
#: The options of an encoder that this version knows, and their types.
OPTIONS: dict[str, type] = {
    "max_tokens": int,
    "query_prompt": str,
    "document_prompt": str,
    "precision": str,
}
#: Bytes of what says how parts are made.
LONGEST_HOW = 8192
_LINE = re.compile(r"[^\x00-\x1f\x7f]{1,255}")


class RegisterEmbedding(DDLElement):
    """``COMMENT ON INDEX ix_article_embedding_pending IS '{"pgembed": 1, ...}'``

    The comment says what the column is filled with; the view ``pgembed.embedding_columns`` reads it.
    """

    def __init__(self, index: PendingIndex) -> None:
        self.index = index

    @property
    def facts(self) -> dict[str, Any]:
        """What the comment holds."""
        embedding = self.index.embedding
        declaration = embedding.declaration
        facts: dict[str, Any] = {
            "pgembed": 1,
            "column": embedding.name,
            "digest": embedding.digest.name,
            "sources": [source.name for source in embedding.sources],
            "template": declaration.template,
            "encoder": declaration.encoder.name,
            "fingerprint": declaration.encoder.fingerprint,
            "dimensions": declaration.encoder.dimensions,
            "metric": declaration.metric.name,
            "fill": declaration.fill,
        }
        if declaration.sources != tuple(facts["sources"]):  # what the template calls them
            facts["fields"] = list(declaration.sources)
        if isinstance(declaration.encoder, Encoder) and declaration.encoder.options:
            facts["options"] = declaration.encoder.options
        if declaration.replaces is not None:
            facts["replaces"] = declaration.replaces
        return facts | embedding.facts


@compiles(RegisterEmbedding)
def _compile(element: RegisterEmbedding, compiler: Any, **_: Any) -> str:
    table = element.index.embedding.table
    name = compiler.preparer.format_index(element.index)
    schema = compiler.preparer.schema_for_object(table)  # through schema_translate_map
    if schema is not None:
        name = f"{compiler.preparer.quote_schema(schema)}.{name}"
    comment = compiler.sql_compiler.render_literal_value(json.dumps(element.facts), String())
    return f"COMMENT ON INDEX {name} IS {comment}"


@event.listens_for(PendingIndex, "after_create")
def _after_index(index: PendingIndex, connection: Any, **_: Any) -> None:
    if is_postgres(connection.dialect):
        connection.execute(RegisterEmbedding(index))


def read_registration(comment: str | None) -> tuple[Facts | None, str | None]:
    """The facts in a comment, or what is wrong with them; neither for a comment that is not ours."""
    if comment is None or not comment.startswith(_BEGINNING):
        return None, None
    if len(comment.encode(errors="surrogatepass")) > _LONGEST:
        return None, "it is longer than 64 kB"
    try:
        facts = json.loads(comment, parse_constant=_refuse)
        _check_values(facts)
    except (ValueError, RecursionError):
        return None, "it is not JSON that Postgres can read"
    problem = registration_problem(facts)
    return (None, problem) if problem else (facts, None)


def registration_problem(facts: Any) -> str | None:
    """What is wrong with the facts of a registration; ``None`` where nothing is."""
    if not isinstance(facts, dict) or type(facts.get("pgembed")) is not int or facts["pgembed"] != 1:
        return "pgembed is not 1, the format that this version reads"
    for key in ("column", "digest", "encoder", "fingerprint", "metric", "fill"):
        if not isinstance(facts.get(key), str):
            return f"{key} is not a text"
    for key in ("template", "replaces"):
        if not isinstance(facts.get(key), str | None):
            return f"{key} is not a text"
    for key in ("sources", "fields", "duplicate_of"):
        names = facts.get(key)
        if names is None and key != "sources":
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return f"{key} is not a list of names"
        if not names:
            return f"{key} is an empty list"
        if len(set(names)) < len(names):
            return f"{key} has a name twice"
    return _problem_of_names(facts) or _problem_of_values(facts) or _problem_of_template(facts)


def _check_values(value: Any) -> None:
    """
    :raises ValueError: what Postgres cannot store: NUL or a lone surrogate in a text, infinity.
    """
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for one in value:
            _check_values(one)
    elif isinstance(value, str) and b"\0" in value.encode():
        raise ValueError("NUL in a text")
    elif isinstance(value, float) and math.isinf(value):
        raise ValueError("a number out of range")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def fields_of(facts: Mapping[str, Any]) -> list[str]:
    """What the template calls the sources: names of attributes, which can differ from those of columns."""
    sources = list(facts["sources"])
    if facts.get("fields"):
        return list(facts["fields"])
    if facts.get("template") is not None and len(sources) == 1:
        used = list(dict.fromkeys(_used(facts["template"]) or ()))
        if len(used) == 1 and re.fullmatch(r"[^][!:.{}]+", used[0]):
            return used
    return sources


def _problem_of_names(facts: Facts) -> str | None:
    columns = [facts["column"], facts["digest"], *facts["sources"], *(facts.get("duplicate_of") or ())]
    named = columns if facts.get("replaces") is None else [*columns, facts["replaces"]]
    if not all(1 <= len(name.encode()) <= LONGEST_NAME for name in named):
        return "the name of a column is not of 1 to 63 bytes"
    if len(set(columns)) < len(columns):
        return "column, digest and sources are not different columns"
    if facts.get("fields") is not None and len(facts["fields"]) != len(facts["sources"]):
        return "fields are not as many as sources"
    return None


def _problem_of_values(facts: Facts) -> str | None:
    for key in ("encoder", "fingerprint"):
        if not _LINE.fullmatch(facts[key]):
            return f"{key} is not a line of 1 to 255 characters"
    dimensions, most = facts.get("dimensions"), MAX_DIMENSIONS["vector"]
    if type(dimensions) is not int or not 1 <= dimensions <= most:
        return f"dimensions is not a whole number from 1 to {most}"
    metrics = metrics_of("vector")
    if facts["metric"] not in metrics:
        return f"metric is not {', '.join(metrics[:-1])} or {metrics[-1]}"
    if facts["fill"] not in ("flush", "worker"):
        return "fill is not flush or worker"
    if not isinstance(facts.get("options"), dict | None):
        return "options is not an object"
    options = facts.get("options") or {}
    for name, kind in OPTIONS.items():
        # To SQL, JSON has numbers alone; what is whole is checked where an encoder is made.
        kinds, noun = ((int, float), "number") if kind is int else ((str,), "text")
        if name in options and type(options[name]) not in kinds:
            return f"the option {name} of the encoder is not a {noun}"
    return _problem_of_words(facts) or _problem_of_parts(facts)


def _problem_of_words(facts: Facts) -> str | None:
    words = facts.get("words")
    if words is None:
        return None
    if not isinstance(words, dict):
        return "words is not an object"
    for key, most in (("column", LONGEST_NAME), ("statistics", LONGEST_NAME), ("config", 255)):
        value = words.get(key)
        if not isinstance(value, str) or not 1 <= len(value.encode()) <= most:
            return f"{key} of words is not a text of 1 to {most} bytes"
    for key, limit in (("k1", 1000), ("b", 1)):
        if type(words.get(key)) not in (int, float) or not 0 <= words[key] <= limit:
            return f"{key} of words is not a number from 0 to {limit}"
    return None


def _problem_of_parts(facts: Facts) -> str | None:
    parts = facts.get("parts")
    if parts is None:
        return None
    if not isinstance(parts, dict):
        return "parts is not an object"
    for key, most in (("table", LONGEST_NAME), ("how", LONGEST_HOW)):
        value = parts.get(key)
        if not isinstance(value, str) or not 1 <= len(value.encode()) <= most:
            return f"{key} of parts is not a text of 1 to {most} bytes"
    return None


def _problem_of_template(facts: Facts) -> str | None:
    template = facts.get("template")
    if template is None:
        return None
    used = _used(template)
    if used is None or set(used) != set(fields_of(facts)):
        return "template does not have exactly the sources as its fields"
    return None


def _used(template: str) -> list[str] | None:
    """The fields of a template; ``None`` if it is none, or formats them otherwise than plainly."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError:
        return None
    if any(spec or conversion for _, _, spec, conversion in parts):
        return None
    return [name for _, name, _, _ in parts if name is not None]
