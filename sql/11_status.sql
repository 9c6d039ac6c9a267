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
                                            'pending', 'failed', 'index', 'problem', 'estimated', 'words', 'parts']) THEN
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

-- How much of a table is read to count its rows: all of up to 128 MB, of larger ones about 1,000 pages.
CREATE OR REPLACE FUNCTION pgembed.sampled_percent(relation regclass)
RETURNS double precision
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT CASE WHEN p.pages > 16384 THEN 100 * 1024.0 / p.pages ELSE 100 END
    FROM (SELECT coalesce(sum(pg_relation_size(c.oid)), 0) / current_setting('block_size')::integer AS pages
          FROM ( -- a table without partitions is no partition tree
              SELECT relation AS relid UNION SELECT t.relid FROM pg_partition_tree(relation) AS t
          ) AS part
          JOIN pg_class AS c ON c.oid = part.relid AND c.relkind = 'r') AS p
);

-- The rows of a condition, counted or estimated; the condition is executed as it is given.
CREATE OR REPLACE FUNCTION pgembed.count_rows(relation regclass, condition text)
RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    percent double precision := pgembed.sampled_percent(relation);
    counted bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s %s WHERE %s', relation,
                   CASE WHEN percent < 100
                        THEN format('TABLESAMPLE SYSTEM (%s) REPEATABLE (1)', percent) ELSE '' END,
                   condition) INTO counted;
    RETURN round(counted * 100 / percent);
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
    OUT words text, -- when the statistics of its words were refreshed; NULL where none are declared
    OUT parts bigint -- rows of the table of parts, estimated as the others; NULL of a column
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    entry record;
    predicate text;
    vectors regclass; -- the table with the vectors
    vector_column name;
    columns name[];
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
        parts := NULL;
        IF problem IS NOT NULL THEN
            RETURN NEXT; -- nothing of such a table is executed
            CONTINUE;
        END IF;
        vectors := entry.relation;
        vector_column := column_name;
        columns := ARRAY[column_name];
        IF jsonb_typeof(entry.facts -> 'parts') = 'object' THEN
            columns := ARRAY[(entry.facts ->> 'digest')::name];
            vector_column := 'embedding';
            BEGIN
                vectors := pgembed.table_beside(entry.relation, (entry.facts -> 'parts' ->> 'table')::name);
                IF vectors IS NULL THEN
                    problem := format('there is no table %I', entry.facts -> 'parts' ->> 'table');
                END IF;
            EXCEPTION WHEN insufficient_privilege THEN
                problem := SQLERRM;
            END;
            IF problem IS NOT NULL THEN
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        SELECT string_agg(i.method || CASE WHEN i.valid THEN '' ELSE ' (invalid)' END, ', ' ORDER BY i.method)
          INTO index
          FROM pgembed.column_indexes AS i
         WHERE i.relation = vectors AND i.column_name = vector_column AND i.method <> 'btree';
        index := coalesce(index, 'none');
        IF NOT EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = entry.relation AND a.attname = ANY (columns) AND NOT a.attisdropped) THEN
            problem := format('%s has no column %I any more; register the column under its new name',
                              entry.relation, columns[1]);
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
            estimated := pgembed.sampled_percent(entry.relation) < 100;
            IF estimated THEN
                fresh := pgembed.count_rows(entry.relation, format('NOT (%s)', predicate));
                total := pending + fresh;
            ELSE
                total := pgembed.count_rows(entry.relation, 'true');
                fresh := total - pending;
            END IF;
            IF vectors <> entry.relation THEN
                parts := pgembed.count_rows(vectors, 'true');
                estimated := estimated OR pgembed.sampled_percent(vectors) < 100;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            problem := SQLERRM;
            total := NULL;
            fresh := NULL;
            estimated := NULL;
            parts := NULL;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW pgembed.status AS SELECT * FROM pgembed.column_status();
COMMENT ON VIEW pgembed.status IS 'fresh, pending and failed rows of every embedding column, and its vector index';
