"""Conditions as SQL text, on their way into a statement of ours: they stay within their parentheses.

``n = 3) OR (1=1`` would close the parentheses around it and escape the AND. So texts are scanned as Postgres
does (literals, quoted names, dollar quotes, nested comments), and must close exactly what they open.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Boolean, ColumnClause, TextClause, literal_column
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, Grouping
from sqlalchemy.sql.visitors import iterate

from pgembed.exc import DeclarationError

# Of names and of the tags of dollar quotes; every character beyond ASCII counts, blanks of Unicode too.
_LETTER = r"[A-Za-z_\x80-\U0010ffff]"
_LETTER_OR_DIGIT = r"[A-Za-z0-9_\x80-\U0010ffff]"
#: What has an end to look for, or matters here; names hide what looks like it.
_BEGINS = re.compile(
    rf"--|/\*|[eE]'|\$(?:{_LETTER}{_LETTER_OR_DIGIT}*)?\$|{_LETTER}(?:{_LETTER_OR_DIGIT}|\$)*"
    rf"|[0-9]{_LETTER_OR_DIGIT}*|[^ \t\n\r\f\v]"
)
_COMMENT = re.compile(r"[^\r\n]*")
_BLOCK = re.compile(r"/\*|\*/")
_NAME = re.compile(r'(?:[^"]|"")*"')
_PLAIN = re.compile(r"(?:[^']|'')*'")
_ESCAPES = r"(?:[^'\\]|''|\\.)*'"
#: A literal may continue on the next line, with the same escapes.
_ESCAPED = re.compile(rf"{_ESCAPES}(?:(?:[ \t\n\r\f\v]|--[^\r\n]*[\r\n])*'{_ESCAPES})*", re.DOTALL)


def condition(where: str | Any, *, what: str = "where=") -> Any:
    """A condition that can safely be joined to others by AND.

    :param where: SQL text, or an expression; texts within it (``text()``, ``literal_column()``) count too.
    :param what: the argument, for messages.
    :raises DeclarationError: a text does not close what it opens, closes more than that, or is more than a
        condition.
    """
    if isinstance(where, str):
        check_sql(where, what=what)
        # The bracket gets its own line: the text may end with a comment.
        return literal_column(f"({where}\n)", Boolean())
    clause: ColumnElement[bool] = getattr(where, "__clause_element__", lambda: where)()
    if not isinstance(clause, ClauseElement):
        return where
    texts = [
        element.text if isinstance(element, TextClause) else element.name
        for element in iterate(clause)
        if isinstance(element, TextClause) or (isinstance(element, ColumnClause) and element.is_literal)
    ]
    for found in texts:
        check_sql(found, what=what, within=True)
    # SQLAlchemy puts no parentheses around such texts, which may be alternatives.
    return Grouping(clause) if texts else where


def check_sql(sql: str, *, what: str = "where=", within: bool = False) -> None:
    """Refuse a text that is more, or less, than one condition or statement.

    :param within: whether more SQL follows on the same line.
    :raises DeclarationError: it is not.
    """
    # What a backslash means in a plain literal depends on the setting standard_conforming_strings.
    for literal in (_PLAIN, _ESCAPED):
        if problem := _problem(sql, literal, within):
            raise DeclarationError(f"{what} {problem}: {sql!r}")


def _problem(sql: str, plain: re.Pattern[str], within: bool) -> str | None:
    """What is wrong with a text; ``None`` where nothing is.

    :param plain: how plain literals go on after their first quote.
    """
    depth = position = 0
    empty, in_comment = True, False
    while found := _BEGINS.search(sql, position):
        mark, position = found[0], found.end()
        in_comment = mark == "--"
        end: int | None = position
        if mark == "--":
            end = _end(_COMMENT, sql, position)
        elif mark == "/*":
            end = _after_comment(sql, position)
        elif mark == '"':
            end = _end(_NAME, sql, position)
        elif mark == "'":
            end = _end(plain, sql, position)
        elif mark in ("e'", "E'"):
            end = _end(_ESCAPED, sql, position)
        elif len(mark) > 1 and mark[0] == mark[-1] == "$":
            end = (sql.find(mark, position) + len(mark)) if mark in sql[position:] else None
        elif mark == ";":
            return "ends at a semicolon"
        elif mark == "\0":
            return "holds a NUL character"
        elif mark in "()":
            depth += 1 if mark == "(" else -1
            if depth < 0:
                return "closes a parenthesis that it has not opened"
        if end is None:
            return f"does not close {mark}"
        position = end
        empty = empty and mark in ("--", "/*")
    if depth:
        return "does not close a parenthesis"
    if within and in_comment and sql[position:] == "":
        return "ends with a comment, which would hide what follows"
    return "is empty" if empty else None


def _end(pattern: re.Pattern[str], sql: str, start: int) -> int | None:
    found = pattern.match(sql, start)
    return found.end() if found else None


def _after_comment(sql: str, start: int) -> int | None:
    """Where a comment ends whose ``/*`` ends at ``start``; they nest."""
    depth = 1
    for found in _BLOCK.finditer(sql, start):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return None
