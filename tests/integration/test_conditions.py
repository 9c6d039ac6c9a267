"""SQL conditions given as text stay within their parentheses, as Postgres reads them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, and_, create_engine, func, literal_column, or_, select, text
from sqlalchemy.exc import DBAPIError

from pgembed import HNSW
from pgembed.columns.conditions import check_sql, condition
from pgembed.exc import DeclarationError
from pgembed.indexes.query_plan import explain

GOOD = (
    "n = 1",
    "n = 1 OR n = 2",
    "n = 1 -- ) the first",
    "n = 1 /* ) /* nested ) */ */",
    "t = 'it''s ) ; --' OR n = 1",
    r"t LIKE '\%) (' OR n = 1",
    r"t = E'\') OR (1=1' OR n = 1",
    'n = 1 AND ")" = 2',
    "t = $$) OR (1=1$$ OR n = 1",
    "t = $a1$ $$ ) $a1$ OR n = 1",
    "n IN (SELECT (1))",
    "t = U&'\\0041)' OR n = 1",
    "t = E'a'\n'\\' ) OR (1=1 --' OR n = 1",  # the second line of a literal is read as the first
    "n = 1 AND '12:30' <> ':n' AND t NOT LIKE '%s%(x)s'",
)
BAD = {
    "n = 3) OR (1=1": "closes a parenthesis",
    "(n = 3": "does not close a parenthesis",
    "true); DROP TABLE thing; --": "closes a parenthesis",
    "true; DROP TABLE thing": "semicolon",
    "n = 3 /* ": "does not close /*",
    "n = 3 /* /* */": "does not close /*",
    "t = 'x": "does not close '",
    r"t = E'x\'": "does not close E'",
    '"n = 3': 'does not close "',
    "t = $x$ ) OR (1=1 $X$": "does not close $x$",
    "t = '') OR ('' = ''": "closes a parenthesis",
    # A literal, or the end of one and more, by the setting standard_conforming_strings.
    r"t = '\' OR ') OR (1=1 --'": "closes a parenthesis",
    # Of a name, not the beginning of a quote.
    "n = a$x$) OR (1=1 -- $x$": "closes a parenthesis",
    "n = €$x$) OR (1=1 -- $x$": "closes a parenthesis",
    "": "is empty",
    " -- nothing\n /* at all */": "is empty",
    "n = 1\0": "NUL",
}


@pytest.fixture(scope="module")
def thing(module_url: Any) -> Any:
    engine = create_engine(module_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text('CREATE TABLE thing (n int, t text, ")" int)'))
        connection.execute(text("INSERT INTO thing VALUES (1, 'a', 2), (2, 'b', 2), (3, 'c', 3)"))
        yield connection
    engine.dispose()


def rows(connection: Any, where: Any) -> set[int]:
    thing = literal_column("thing")
    found = select(literal_column("n")).select_from(text(str(thing)))
    return set(connection.scalars(found.where(literal_column("n < 3"), condition(where))))


@pytest.mark.parametrize("where", GOOD)
def test_a_condition_is_what_postgres_takes_for_one(thing: Any, where: str) -> None:
    assert 1 in rows(thing, where) <= {1, 2}


@pytest.mark.parametrize(("where", "reason"), BAD.items())
def test_what_would_leave_its_parentheses_is_refused(where: str, reason: str) -> None:
    for given_as in (where, literal_column(where), and_(literal_column("x"), or_(text(where), text("y")))):
        with pytest.raises(DeclarationError) as refused:
            condition(given_as)
        assert str(refused.value).startswith("where= ")
        assert reason in str(refused.value)


PIECES = (
    "'",
    "''",
    "\\",
    "E'",
    ") OR (1=1",
    "(",
    ")",
    "--",
    "\n",
    "/*",
    "*/",
    "$$",
    "$a$",
    "a",
    '"',
    " AND ",
)
PIECES += ("true", "€", "1", "U&'", " ", "\u00a0", "n", "||", "-", "/", "*")


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join), st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_let_through_adds_no_row(thing: Any, where: str, conforming: bool) -> None:
    try:
        found = condition(where)
    except DeclarationError:
        return
    thing.execute(
        select(func.set_config("standard_conforming_strings", "on" if conforming else "off", False))
    )
    statement = select(literal_column("n")).select_from(text("thing")).where(text("false"), found)
    with suppress(DBAPIError):  # no condition, and no more than that
        assert thing.scalars(statement).all() == []


def test_alternatives_given_as_text_stay_together(thing: Any) -> None:
    for where in (text("n = 1 OR n = 3"), literal_column("n = 1 OR n = 3"), "n = 1 OR n = 3"):
        assert rows(thing, where) == {1}
    assert rows(thing, and_(text("n = 1 OR n = 3"), text("true"))) == {1}
    assert rows(thing, text("n = :n OR true").bindparams(n=1)) == {1, 2}
    with pytest.raises(DeclarationError, match="ends with a comment"):
        condition(text("n = 1 -- the first"))


def test_indexes_and_explain_take_one_condition_and_one_statement(engine: Engine) -> None:
    with pytest.raises(DeclarationError, match="closes a parenthesis"):
        HNSW("embedding", where="n = 3) OR (1=1")
    with pytest.raises(DeclarationError, match="ends with a comment"):
        HNSW("embedding", where="n = 3 -- all of them")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (n int)"))
        assert explain(connection, "SELECT n FROM kept;").used == ()
        with pytest.raises(DeclarationError, match="semicolon"):
            explain(connection, "SELECT 1; DROP TABLE kept")
        assert connection.scalar(text("SELECT to_regclass('kept')")) is not None


def test_names_with_dollars_are_names() -> None:
    check_sql('a$b$ = 1 AND "$$" = 2 AND $1 = 2')
