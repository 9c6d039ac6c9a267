"""The operations of migrations: ``op.install_pgembed`` and so on.

================================  ====================================================================
operation                         what it does
================================  ====================================================================
``install_pgembed``               the extension ``vector`` and pgembed's SQL objects
``uninstall_pgembed``             drops the SQL objects again
``create_vector_index``           builds an HNSW or IVFFlat index
``drop_vector_index``             drops it
``replace_vector_index``          builds it with another definition, and drops the old one
``create_pending_index``          the index of the pending rows of an embedding column, with its registration
``drop_pending_index``            drops it
``replace_pending_index``         builds it with another predicate, and drops the old one
``register_embedding``            rewrites the registration alone
``create_meaning_guard``          the trigger of ``unique_within=``
``drop_meaning_guard``            drops it
``alter_vector_column``           other dimensions, other storage
``assert_backfilled``             stops the migration while rows are pending
``lock_table``                    takes a table's lock in short attempts, so that others do not wait
``set_not_null``                  ``NOT NULL`` in steps that do not block reads or writes
================================  ====================================================================

All of them have an offline form (``alembic upgrade --sql``). Autogenerate writes ``downgrade()`` from the
``reverse()`` of its operations.
"""
