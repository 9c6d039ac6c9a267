-- How fresh every embedding column is. Pending rows are counted exactly, from the index that holds just
-- them. Rows are counted in tables below 100,000 rows and estimated above, from the statistics.
-- Failed rows are those that workers have set aside (pgembed.failure); they are pending as well.
DO $$
BEGIN
    -- A function whose columns changed cannot be replaced.
    IF EXISTS (SELECT FROM pg_catalog.pg_proc AS p
               WHERE p.oid = pg_catalog.to_regproc('pgembed.column_status')
                 AND p.proargnames <> ARRAY['relation', 'column_name', 'encoder', 'fingerprint', 'total', 'fresh',
                                            'pending', 'failed', 'index', 'problem']) THEN
        DROP VIEW IF EXISTS pgembed.status;
        DROP FUNCTION pgembed.column_status();
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION pgembed.column_status(
    OUT relation regclass,
    OUT column_name name,
    OUT encoder text,
    OUT fingerprint text,
    OUT total bigint,
    OUT fresh bigint,
    OUT pending bigint,
    OUT failed bigint,
    OUT index text,
    OUT problem text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    entry record;
    estimate double precision;
BEGIN
    FOR entry IN
        SELECT e.* FROM pgembed.embedding_columns AS e ORDER BY e.relation::text, e.column_name
    LOOP
        relation := entry.relation;
        column_name := entry.column_name;
        encoder := entry.encoder;
        fingerprint := entry.fingerprint;
        total := NULL;
        fresh := NULL;
        pending := NULL;
        failed := NULL;
        problem := NULL;
        SELECT string_agg(
                   am.amname || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END, ', ' ORDER BY am.amname
               )
          INTO index
          FROM pg_index AS i
          JOIN pg_class AS c ON c.oid = i.indexrelid
          JOIN pg_am AS am ON am.oid = c.relam
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attname = entry.column_name
         WHERE i.indrelid = entry.relation AND a.attnum = ANY (i.indkey) AND am.amname <> 'btree';
        index := coalesce(index, 'none');
        IF NOT EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = entry.relation AND a.attname = entry.column_name
                          AND NOT a.attisdropped) THEN
            problem := format('%s has no column %I any more; register the column under its new name',
                              entry.relation, entry.column_name);
        END IF;
        BEGIN
            EXECUTE format('SELECT count(*) FROM %s WHERE %s', entry.relation, entry.pending_predicate)
               INTO pending;
            SELECT sum(c.reltuples) INTO estimate
              FROM pg_partition_tree(entry.relation) AS part
              JOIN pg_class AS c ON c.oid = part.relid
             WHERE part.isleaf;
            IF coalesce(estimate, 0) < 100000 THEN
                EXECUTE format('SELECT count(*) FROM %s', entry.relation) INTO total;
            ELSE
                total := greatest(estimate::bigint, pending);
            END IF;
            fresh := total - pending;
            SELECT count(*) INTO failed
              FROM pgembed.failure AS f
             WHERE f.relation = entry.relation AND f.column_name = entry.column_name;
        EXCEPTION WHEN insufficient_privilege OR undefined_column OR undefined_table THEN
            problem := SQLERRM;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW pgembed.status AS SELECT * FROM pgembed.column_status();
COMMENT ON VIEW pgembed.status IS 'fresh, pending and failed rows of every embedding column, and its vector index';
