"""The operations of migrations: ``op.install_pgembed`` and so on.

================================  ====================================================================
operation                         what it does
================================  ====================================================================
``install_pgembed``               the extension ``vector`` and pgembed's SQL objects
``uninstall_pgembed``             drops the SQL objects again
``create_vector_index``           builds an HNSW or IVFFlat index
``drop_vector_index``             drops it
``replace_vector_index``          builds it with other parameters, and drops the old one
``create_pending_index``          the index of the pending rows of an embedding column, with its registration
``drop_pending_index``            drops it
``replace_pending_index``         builds it with another predicate, and lets the two change places
``register_embedding``            rewrites the registration alone
``alter_vector_column``           other dimensions, other storage
``assert_backfilled``             stops the migration while rows are pending
``lock_table``                    waits for a table's lock so that others need not
``set_not_null``                  ``NOT NULL`` by steps that keep nobody out
================================  ====================================================================

All of them have an offline form (``alembic upgrade --sql``). ``reverse()`` of those that autogenerate emits
is what ``downgrade()`` is written from.
"""
