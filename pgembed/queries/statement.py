"""The statements that searches return: selects that refuse what would act on the wrong rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVarTuple, cast

from sqlalchemy import Select

from pgembed.exc import LateClauseError

_Ts = TypeVarTuple("_Ts")

if TYPE_CHECKING:

    class _Select(Select[*_Ts]): ...

else:

    class _Select(Select):
        # SQLAlchemy 2.0 has one type parameter, 2.1 any number of them: type checkers see those of 2.1.
        inherit_cache = True

        def __class_getitem__(cls, _types):
            return cls


def _refused(method: str, reason: str) -> Any:
    def refuse(self: Search[*tuple[Any, ...]], *_: Any, **__: Any) -> NoReturn:
        raise LateClauseError(method, reason.format(helper=self.helper))

    refuse.__name__ = method
    refuse.__doc__ = f"Refused: {reason.format(helper='the helper')}."
    return refuse


_WHERE = "it would filter after the LIMIT and leave too few rows; pass where= to {helper}()"
_LIMIT = "the search has to know how many rows are wanted; pass limit= and offset= to {helper}()"
_ORDER = "rows come best first; to sort them otherwise, select from its .subquery()"
_GROUP = "it would act after the LIMIT; select from its .subquery(), or count votes with knn_classify()"


class Search(_Select[*_Ts]):
    """A ``Select`` whose LIMIT has been decided within.

    It is executed, joined, extended by columns and loader options, and made a subquery like any other. What
    would filter, cut or sort the rows that the search has chosen raises
    :class:`~pgembed.exc.LateClauseError`, which says what to use instead.
    """

    inherit_cache = True
    #: The function that made the statement, for messages.
    helper = "semantic_search"

    where = _refused("where", _WHERE)
    filter = _refused("filter", _WHERE)
    filter_by = _refused("filter_by", _WHERE)
    limit = _refused("limit", _LIMIT)
    offset = _refused("offset", _LIMIT)
    fetch = _refused("fetch", _LIMIT)
    slice = _refused("slice", _LIMIT)
    order_by = _refused("order_by", _ORDER)
    having = _refused("having", _GROUP)
    group_by = _refused("group_by", _GROUP)
    distinct = _refused("distinct", _GROUP)

    @classmethod
    def sealing(cls, statement: Select[Any]) -> Self:
        """``statement`` as a search; the statement given is left as it is."""
        copy: Any = statement.execution_options()
        copy.__class__ = cls
        return cast("Self", copy)


class Votes(Search[*_Ts]):
    """The statement of ``knn_classify``: its rows may be cut, as in ``.limit(1)``, for the voting is over."""

    inherit_cache = True
    helper = "knn_classify"

    if not TYPE_CHECKING:
        limit = Select.limit
        offset = Select.offset
        fetch = Select.fetch
        slice = Select.slice


class Hybrid(Search[*_Ts]):
    """The statement of ``hybrid_search``."""

    inherit_cache = True
    helper = "hybrid_search"
