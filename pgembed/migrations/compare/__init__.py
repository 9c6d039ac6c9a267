"""What autogenerate compares, one subject per file.

=================  ===============================================================================
installation       the extension ``vector`` and pgembed's SQL objects
columns            type, dimensions and ``NOT NULL`` of vector columns
whole_table        one table after Alembic's own comparison: its subjects in their order
indexes            vector indexes and pending indexes, with their registrations
meaning_guard      the triggers of ``unique_within=``
encoder_series     changes of encoder, as a series of revisions
refusals           changes of encoder that are refused
=================  ===============================================================================

Each of the first three has a ``setup()`` that registers its comparators with Alembic. Each comparator has its
own subgroup, so that its result does not stop others. The others compare model and database for
``whole_table``.
"""

from pgembed.migrations.compare import columns, installation, whole_table


def setup() -> None:
    """Register all comparators."""
    for subject in (installation, columns, whole_table):
        subject.setup()
