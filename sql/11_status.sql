-- How fresh every embedding column is. Pending rows are counted exactly, from the index that holds just them.
-- All rows are counted in tables of up to 128 MB, dead rows included. Of larger ones about 1,000 pages are
-- drawn at random, which say how many rows are fresh; "estimated" tells that. Statistics are not asked: after
-- an update of many rows they are far from the truth.
-- A table that cannot be read, that somebody keeps locked, or whose owner is not trusted, has a problem and
-- no figures, and the others are shown; see pgembed.registrations.
-- Failed rows are those that workers have set aside (pgembed.failure); they are pending as well.
DO $$
BEGIN
    -- A function whose columns changed cannot be replaced.
    IF EXISTS (SELECT FROM pg_catalog.pg_proc AS p
               WHERE p.oid = pg_catalog.to_regproc('pgembed.column_status')
                 AND p.proargnames <> ARRAY['relation', 'column_name', 'encoder', 'fingerprint', 'total', 'fresh',
                                            'pending', 'failed', 'index', 'problem', 'estimated', 'words']) THEN
        BEGIN -- The view stays, and with it who may read it.
            CREATE OR REPLACE VIEW pgembed.status AS
            SELECT NULL::regclass AS relation, NULL::name AS column_name, NULL::text AS encoder,
                   NULL::text AS fingerprint, NULL::bigint AS total, NULL::bigint AS fresh,
                   NULL::bigint AS pending, NULL::bigint AS failed, NULL::text AS index, NULL::text AS problem;
        EXCEPTION WHEN invalid_table_definition THEN
            DROP VIEW pgembed.status;
        END;
        DROP FUNCTION pgembed.column_status();
    END IF;
END
$$;

-- When the statistics of a column's words were refreshed, or why that is not known.
CREATE OR REPLACE FUNCTION pgembed.words_as_of(relation regclass, declared jsonb)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    statistics regclass;
    found timestamptz;
BEGIN
    IF coalesce(jsonb_typeof(declared), 'null') = 'null' THEN
        RETURN NULL;
    END IF;
    statistics := pgembed.word_statistics(relation, declared);
    IF statistics IS NULL THEN
        RETURN format('there is no table %I', declared ->> 'statistics');
    END IF;
    EXECUTE format('SELECT refreshed_at FROM %s WHERE lexeme = %L', statistics, '') INTO found;
    RETURN coalesce(to_char(found AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never refreshed');
EXCEPTION WHEN OTHERS THEN
    RETURN SQLERRM;
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
    OUT problem text,
    OUT estimated boolean, -- whether total and fresh are estimates
    OUT words text -- when the statistics of its words were refreshed; NULL where none are declared
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    entry record;
    predicate text;
    pages bigint;
    percent double precision;
BEGIN
    FOR entry IN
        SELECT r.relation, r.column_name, r.pending_index, r.problem, r.facts
          FROM pgembed.registrations AS r
         ORDER BY r.relation::text, r.column_name, r.pending_index::text
    LOOP
        relation := entry.relation;
        column_name := entry.column_name;
        encoder := entry.facts ->> 'encoder';
        fingerprint := entry.facts ->> 'fingerprint';
        total := NULL;
        fresh := NULL;
        pending := NULL;
        failed := NULL;
        index := NULL;
        problem := entry.problem;
        estimated := NULL;
        words := NULL;
        IF problem IS NOT NULL THEN
            RETURN NEXT; -- nothing of such a table is executed
            CONTINUE;
        END IF;
        SELECT string_agg(i.method || CASE WHEN i.valid THEN '' ELSE ' (invalid)' END, ', ' ORDER BY i.method)
          INTO index
          FROM pgembed.column_indexes AS i
         WHERE i.relation = entry.relation AND i.column_name = column_status.column_name
           AND i.method <> 'btree';
        index := coalesce(index, 'none');
        IF NOT EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = entry.relation AND a.attname = column_status.column_name
                          AND NOT a.attisdropped) THEN
            problem := format('%s has no column %I any more; register the column under its new name',
                              entry.relation, column_name);
            RETURN NEXT;
            CONTINUE;
        END IF;
        words := pgembed.words_as_of(entry.relation, entry.facts -> 'words');
        BEGIN
            predicate := pgembed.pending_predicate(entry.facts);
            IF NOT pgembed.is_predicate_of(entry.pending_index, predicate) THEN
                problem := format('index %s does not hold the rows that its registration describes: '
                                  'a migration builds it anew', entry.pending_index);
                RETURN NEXT;
                CONTINUE;
            END IF;
            EXECUTE format('SELECT count(*) FROM %s WHERE %s', entry.relation, predicate) INTO pending;
            SELECT count(*) INTO failed
              FROM pgembed.failure AS f
             WHERE f.relation = entry.relation AND f.column_name = column_status.column_name;
            SELECT coalesce(sum(pg_relation_size(c.oid)), 0) / current_setting('block_size')::integer INTO pages
              FROM ( -- a table without partitions is no partition tree
                  SELECT entry.relation AS relid UNION SELECT t.relid FROM pg_partition_tree(entry.relation) AS t
              ) AS part
              JOIN pg_class AS c ON c.oid = part.relid AND c.relkind = 'r';
            estimated := pages > 16384;
            IF estimated THEN
                percent := 100 * 1024.0 / pages;
                EXECUTE format('SELECT (100 / %1$s * count(*))::bigint FROM %2$s '
                               'TABLESAMPLE SYSTEM (%1$s) REPEATABLE (1) WHERE NOT (%3$s)',
                               percent, entry.relation, predicate) INTO fresh;
                total := pending + fresh;
            ELSE
                EXECUTE format('SELECT count(*) FROM %s', entry.relation) INTO total;
                fresh := total - pending;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            problem := SQLERRM;
            total := NULL;
            fresh := NULL;
            estimated := NULL;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW pgembed.status AS SELECT * FROM pgembed.column_status();
COMMENT ON VIEW pgembed.status IS 'fresh, pending and failed rows of every embedding column, and its vector index';
