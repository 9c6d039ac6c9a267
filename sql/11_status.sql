-- How fresh every embedding column is. Pending rows are counted exactly, from the index that holds just
-- them. Rows are counted in tables below 100,000 rows and estimated above, from the statistics and the size.
-- A table that cannot be read, or that somebody keeps locked, has a problem, and the others are shown.
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
SET lock_timeout = '2s'
AS $$
DECLARE
    entry record;
    predicate text;
    estimate double precision;
    unknown bigint; -- pages of tables without statistics
BEGIN
    FOR entry IN
        SELECT e.relation, e.column_name, e.encoder, e.fingerprint, e.pending_index
          FROM pgembed.embedding_columns AS e ORDER BY e.relation::text, e.column_name
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
         WHERE i.indrelid = entry.relation AND am.amname <> 'btree'
           AND (a.attnum = ANY (i.indkey)
                OR i.indkey[0] = 0 AND EXISTS ( -- an expression over the column
                    SELECT FROM pg_depend AS d
                     WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                       AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum));
        index := coalesce(index, 'none');
        IF NOT EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = entry.relation AND a.attname = entry.column_name
                          AND NOT a.attisdropped) THEN
            problem := format('%s has no column %I any more; register the column under its new name',
                              entry.relation, entry.column_name);
        END IF;
        BEGIN
            SELECT pg_get_expr(i.indpred, i.indrelid) INTO predicate
              FROM pg_index AS i WHERE i.indexrelid = entry.pending_index;
            EXECUTE format('SELECT count(*) FROM %s WHERE %s', entry.relation, predicate) INTO pending;
            SELECT count(*) INTO failed
              FROM pgembed.failure AS f
             WHERE f.relation = entry.relation AND f.column_name = entry.column_name;
            SELECT sum(c.reltuples / c.relpages * leaf.pages) FILTER (WHERE c.relpages > 0),
                   sum(leaf.pages) FILTER (WHERE c.relpages = 0)
              INTO estimate, unknown
              FROM ( -- a table without partitions is no partition tree
                  SELECT entry.relation AS relid UNION SELECT t.relid FROM pg_partition_tree(entry.relation) AS t
              ) AS part
              JOIN pg_class AS c ON c.oid = part.relid AND c.relkind = 'r'
             CROSS JOIN LATERAL (
                 SELECT pg_relation_size(c.oid) / current_setting('block_size')::integer AS pages
             ) AS leaf;
            IF unknown > 12800 THEN -- 100 MB, more than is counted in passing
                problem := format('%s has no statistics, so its rows are not estimated: ANALYZE %1$s', entry.relation);
            ELSIF coalesce(estimate, 0) < 100000 THEN
                EXECUTE format('SELECT count(*) FROM %s', entry.relation) INTO total;
            ELSE
                total := greatest(estimate::bigint, pending);
            END IF;
            fresh := total - pending;
        EXCEPTION WHEN OTHERS THEN
            problem := SQLERRM;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW pgembed.status AS SELECT * FROM pgembed.column_status();
COMMENT ON VIEW pgembed.status IS 'fresh, pending and failed rows of every embedding column, and its vector index';
