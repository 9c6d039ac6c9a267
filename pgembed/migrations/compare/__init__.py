"""What autogenerate compares, a subject a file.

=================  ===============================================================================
installation       the extension ``vector`` and pgembed's SQL objects
columns            type, dimensions and ``NOT NULL`` of vector columns
indexes            vector indexes and pending indexes, with their registrations
encoder_series     changes of encoder, as a series of revisions
refusals           changes of encoder that are not written into migrations
=================  ===============================================================================

Each of the first four has a ``setup()`` that registers its comparators with Alembic. A comparator has a
subgroup of its own, so that what it returns does not stop others.
"""

from pgembed.migrations.compare import columns, encoder_series, indexes, installation


def setup() -> None:
    """Register all comparators."""
    for subject in (installation, columns, indexes, encoder_series):
        subject.setup()
