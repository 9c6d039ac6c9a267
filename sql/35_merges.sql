-- Duplicates made one: references to dropped rows become references to kept ones, then dropped rows are deleted.
-- Rows are known by their primary key, or by their place where a table has none. Of the temporary tables,
-- pgembed_merge_N holds which rows are merged into which (d1, ..., k1, ...), pgembed_batch_N the rows that an
-- update will change, and pgembed_merge_report what was done.
CREATE OR REPLACE FUNCTION pgembed.identity_columns(relation regclass)
RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(
    (SELECT array_agg(a.attname ORDER BY k.place)
       FROM pg_index AS i
      CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
       JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
      WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts),
    ARRAY['tableoid', 'ctid']::name[])
$$;

-- The foreign keys that refer to a table, with the comparison of the columns of a row r with those of a referring
-- row c. Of partitions, only the constraint of the whole counts.
CREATE OR REPLACE FUNCTION pgembed.references_to(relation regclass)
RETURNS TABLE (name name, referring regclass, columns name[], referred name[], same text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT f.conname, f.conrelid::regclass, array_agg(a.attname ORDER BY k.place), array_agg(b.attname ORDER BY k.place),
       string_agg(format('r.%I OPERATOR(%I.%s) c.%I', b.attname, n.nspname, o.oprname, a.attname), ' AND '
                  ORDER BY k.place)
  FROM pg_constraint AS f
 CROSS JOIN LATERAL unnest(f.conkey, f.confkey, f.conpfeqop) WITH ORDINALITY AS k (attnum, refnum, eq, place)
  JOIN pg_attribute AS a ON a.attrelid = f.conrelid AND a.attnum = k.attnum
  JOIN pg_attribute AS b ON b.attrelid = f.confrelid AND b.attnum = k.refnum
  JOIN pg_operator AS o ON o.oid = k.eq
  JOIN pg_namespace AS n ON n.oid = o.oprnamespace
 WHERE f.contype = 'f' AND f.confrelid = relation
   AND NOT EXISTS (SELECT FROM pg_constraint AS p WHERE p.oid = f.conparentid AND p.confrelid = f.confrelid)
 GROUP BY f.oid
 ORDER BY f.conrelid::regclass::text, f.conname
$$;

-- The rows that refer to rows to be dropped, or to rows that change with them, and how they change. A row that
-- would refer to itself refers to none, where its columns can be NULL.
CREATE OR REPLACE FUNCTION pgembed.collect_batch(
    relation regclass,
    reference name,
    depth integer
)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mapping text := format('pg_temp.pgembed_merge_%s', depth);
    batch text := format('pg_temp.pgembed_batch_%s', depth);
    keys name[] := pgembed.identity_columns(relation);
    fk record;
    part record;
    added bigint;
    total bigint;
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS %s', batch);
    EXECUTE format('CREATE TEMP TABLE pgembed_batch_%s (relation regclass, part oid, place tid, changes jsonb, '
                   'cleared boolean, PRIMARY KEY (part, place)) ON COMMIT DROP', depth);
    SELECT * INTO fk FROM pgembed.references_to(relation) AS f WHERE f.name = reference;
    EXECUTE format(
        $query$
        INSERT INTO %1$s
        SELECT $1, c.tableoid, c.ctid,
               CASE WHEN itself AND nullable THEN jsonb_object_agg(col, NULL::text) ELSE jsonb_object_agg(col, value) END,
               itself AND nullable
          FROM (SELECT c.tableoid, c.ctid, named.col, named.value,
                       %2$s AS itself, bool_and(NOT a.attnotnull) OVER (PARTITION BY c.tableoid, c.ctid) AS nullable
                  FROM %3$s AS m
                  JOIN %4$s AS r ON %5$s
                  JOIN %4$s AS k ON %6$s
                  JOIN %7$s AS c ON %8$s
                 CROSS JOIN LATERAL (VALUES %9$s) AS named (col, was, value)
                  JOIN pg_attribute AS a ON a.attrelid = $1 AND a.attname = named.col
                 WHERE named.was IS DISTINCT FROM named.value AND NOT (%10$s)) AS c
         GROUP BY c.tableoid, c.ctid, itself, nullable
        $query$,
        batch,
        CASE WHEN fk.referring = relation
             THEN '(c.tableoid, c.ctid) = (k.tableoid, k.ctid)' ELSE 'false' END,
        mapping, relation,
        (SELECT string_agg(format('r.%I = m.d%s', key, n), ' AND ')
           FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
        (SELECT string_agg(format('k.%I = m.k%s', key, n), ' AND ')
           FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
        fk.referring, fk.same,
        (SELECT string_agg(format('(%L, to_jsonb(r.%2$I), to_jsonb(k.%2$I))', col, ref), ', ')
           FROM unnest(fk.columns, fk.referred) AS u (col, ref)),
        CASE WHEN fk.referring = relation
             THEN format('EXISTS (SELECT FROM %s AS x WHERE %s)', mapping,
                         (SELECT string_agg(format('c.%I = x.d%s', key, n), ' AND ')
                            FROM unnest(keys) WITH ORDINALITY AS u (key, n)))
             ELSE 'false' END)
        USING fk.referring;

    LOOP  -- what refers to columns that change follows
        total := 0;
        FOR part IN EXECUTE format(
            'SELECT DISTINCT b.relation, f.name, f.referring, f.columns, f.referred, f.same FROM %s AS b '
            'CROSS JOIN LATERAL pgembed.references_to(b.relation) AS f '
            'WHERE b.changes ?| f.referred::text[]', batch) LOOP
            EXECUTE format(
                $query$
                INSERT INTO %1$s AS known
                SELECT $1, c.tableoid, c.ctid, jsonb_object_agg(named.col, b.changes -> named.ref), false
                  FROM %1$s AS b
                  JOIN %2$s AS r ON r.tableoid = b.part AND r.ctid = b.place
                  JOIN %3$s AS c ON %4$s
                 CROSS JOIN LATERAL unnest($2, $3) AS named (col, ref)
                 WHERE b.relation = $4 AND b.changes ? named.ref::text
                 GROUP BY c.tableoid, c.ctid
                ON CONFLICT (part, place) DO UPDATE SET changes = known.changes || excluded.changes
                 WHERE NOT known.changes @> excluded.changes
                $query$,
                batch, part.relation, part.referring, part.same)
                USING part.referring, part.columns, part.referred, part.relation;
            GET DIAGNOSTICS added = ROW_COUNT;
            total := total + added;
        END LOOP;
        EXIT WHEN total = 0;
    END LOOP;
END
$$;

-- The first unique index that the batch would break, with the rows that it would be broken by in
-- pgembed_merge_(depth + 1): each goes into the row that has its unique key already, or that comes first.
CREATE OR REPLACE FUNCTION pgembed.find_conflict(
    merging regclass,
    depth integer,
    OUT relation regclass,
    OUT index regclass
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    batch text := format('pg_temp.pgembed_batch_%s', depth);
    found text := format('pgembed_merge_%s', depth + 1);
    candidate record;
    keys name[];
    count bigint;
BEGIN
    FOR candidate IN EXECUTE format(
        $query$
        SELECT b.relation, i.indexrelid::regclass AS index, coalesce(pg_get_expr(i.indpred, i.indrelid), 'true') AS holds,
               (SELECT string_agg('(' || pg_get_indexdef(i.indexrelid, n, true) || ')', ', ')
                  FROM generate_series(1, i.indnkeyatts) AS n) AS key,
               CASE WHEN i.indnullsnotdistinct THEN 'true'
                    ELSE (SELECT string_agg('(' || pg_get_indexdef(i.indexrelid, n, true) || ') IS NOT NULL', ' AND ')
                            FROM generate_series(1, i.indnkeyatts) AS n) END AS distinct_key
          FROM (SELECT relation, array_agg(DISTINCT col) AS cols
                  FROM %s CROSS JOIN LATERAL jsonb_object_keys(changes) AS col GROUP BY relation) AS b
          JOIN pg_index AS i ON i.indrelid = b.relation AND i.indisunique AND i.indisvalid
         WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
            OR EXISTS (SELECT FROM pg_attribute AS a
                        WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::smallint[])
                          AND a.attname = ANY (b.cols::name[]))
         ORDER BY b.relation::text, i.indexrelid::regclass::text
        $query$, batch) LOOP
        keys := pgembed.identity_columns(candidate.relation);
        EXECUTE format('DROP TABLE IF EXISTS pg_temp.%I', found);
        EXECUTE format(
            $query$
            CREATE TEMP TABLE %1$I ON COMMIT DROP AS
            SELECT %2$s
              FROM (SELECT pgembed_part, pgembed_place, pgembed_moved, first_value(pgembed_part) OVER same AS part,
                           first_value(pgembed_place) OVER same AS place, row_number() OVER same AS number
                      FROM (SELECT c.tableoid AS pgembed_part, c.ctid AS pgembed_place, false AS pgembed_moved,
                                   %3$s AS pgembed_key, c.*
                              FROM %4$s AS c
                             WHERE NOT EXISTS (SELECT FROM %5$s AS b WHERE b.part = c.tableoid AND b.place = c.ctid)
                               AND NOT (%6$s)
                            UNION ALL
                            SELECT c.tableoid, c.ctid, true, %3$s, v.*
                              FROM %4$s AS c JOIN %5$s AS b ON b.part = c.tableoid AND b.place = c.ctid
                             CROSS JOIN LATERAL jsonb_populate_record(c, b.changes) AS v) AS after
                     WHERE %7$s AND %8$s
                    WINDOW same AS (PARTITION BY %9$s ORDER BY pgembed_moved, pgembed_key)) AS ranked
              JOIN %4$s AS d ON d.tableoid = pgembed_part AND d.ctid = pgembed_place
              JOIN %4$s AS k ON k.tableoid = part AND k.ctid = place
             WHERE pgembed_moved AND number > 1
            $query$,
            found,
            (SELECT string_agg(format('d.%I AS d%s, k.%1$I AS k%2$s', key, n), ', ')
               FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
            (SELECT format('ROW(%s)::text', string_agg(format('c.%I', key), ', ')) FROM unnest(keys) AS key),
            candidate.relation, batch,
            CASE WHEN candidate.relation = merging
                 THEN format('EXISTS (SELECT FROM pg_temp.pgembed_merge_%s AS x WHERE %s)', depth,
                             (SELECT string_agg(format('c.%I = x.d%s', key, n), ' AND ')
                                FROM unnest(keys) WITH ORDINALITY AS u (key, n)))
                 ELSE 'false' END,
            candidate.holds, candidate.distinct_key, candidate.key);
        GET DIAGNOSTICS count = ROW_COUNT;
        IF count > 0 THEN
            relation := candidate.relation;
            index := candidate.index;
            RETURN;
        END IF;
    END LOOP;
END
$$;

-- Merge the rows of pgembed_merge_(depth). What would break a unique index is merged by the same rules. Tables
-- that refer to each other by columns that change are updated in one statement, at whose end foreign keys are
-- checked.
CREATE OR REPLACE FUNCTION pgembed.merge_rows(relation regclass, depth integer, reason text, "by" text)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    batch text := format('pg_temp.pgembed_batch_%s', depth);
    fk record;
    conflict record;
    part record;
    updates text[];
    count bigint;
BEGIN
    FOR fk IN SELECT * FROM pgembed.references_to(relation) LOOP
        LOOP
            PERFORM pgembed.collect_batch(relation, fk.name, depth);
            conflict := pgembed.find_conflict(relation, depth);
            EXIT WHEN conflict.relation IS NULL;
            PERFORM pgembed.merge_rows(conflict.relation, depth + 1, 'merged', conflict.index::text);
        END LOOP;
        updates := '{}';
        FOR part IN EXECUTE format(
            'SELECT relation, array_agg(DISTINCT col) AS cols FROM %s '
            'CROSS JOIN LATERAL jsonb_object_keys(changes) AS col GROUP BY relation ORDER BY relation::text', batch)
        LOOP
            updates := updates || format(
                'u%s AS (UPDATE %s AS c SET %s FROM %s AS b CROSS JOIN LATERAL '
                'jsonb_populate_record(NULL::%2$s, b.changes) AS v WHERE c.tableoid = b.part AND c.ctid = b.place)',
                cardinality(updates), part.relation,
                (SELECT string_agg(format('%1$I = CASE WHEN b.changes ? %1$L THEN v.%1$I ELSE c.%1$I END', col), ', ')
                   FROM unnest(part.cols) AS col),
                batch);
        END LOOP;
        CONTINUE WHEN updates = '{}';
        EXECUTE format(
            'INSERT INTO pg_temp.pgembed_merge_report (relation, "by", action, rows) '
            'SELECT relation::text, $1, CASE WHEN cleared THEN ''cleared'' ELSE ''moved'' END, count(*) FROM %s '
            'GROUP BY relation, cleared ORDER BY relation::text, cleared', batch) USING fk.name;
        EXECUTE 'WITH ' || array_to_string(updates, ', ') || ' SELECT';
    END LOOP;
    EXECUTE format(
        'DELETE FROM %s AS t USING pg_temp.pgembed_merge_%s AS m WHERE %s', relation, depth,
        (SELECT string_agg(format('t.%I = m.d%s', key, n), ' AND ')
           FROM unnest(pgembed.identity_columns(relation)) WITH ORDINALITY AS u (key, n)));
    GET DIAGNOSTICS count = ROW_COUNT;
    INSERT INTO pg_temp.pgembed_merge_report (relation, "by", action, rows)
    VALUES (relation::text, "by", reason, count);
END
$$;

-- Merge dropped rows into kept ones, both given by their keys, as pgembed.keep_list has them. A dry run does all of
-- it and takes it back. Other writers of the tables that are changed wait for the end of the transaction.
CREATE OR REPLACE FUNCTION pgembed.merge_duplicates(
    relation regclass,
    dropped jsonb[],
    kept jsonb[],
    dry_run boolean DEFAULT true
)
RETURNS TABLE (changed text, reference text, action text, rows bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    target regclass := relation;
    keys name[] := pgembed.identity_columns(relation);
    affected regclass[];
    problem jsonb;
    report jsonb;
    postponed record;
BEGIN
    IF keys[1] = 'tableoid' THEN
        RAISE EXCEPTION 'table % has no primary key', relation USING ERRCODE = 'invalid_table_definition';
    ELSIF cardinality(dropped) IS DISTINCT FROM cardinality(kept) THEN
        RAISE EXCEPTION 'found % keys of dropped rows and % of kept ones, expected one for each',
            cardinality(dropped), cardinality(kept) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH RECURSIVE reached AS (
        SELECT target::oid AS table_oid
        UNION
        SELECT f.conrelid FROM reached AS r JOIN pg_constraint AS f ON f.confrelid = r.table_oid AND f.contype = 'f'
    )
    SELECT array_agg(r.table_oid::regclass ORDER BY r.table_oid) INTO affected FROM reached AS r;
    BEGIN
        FOR i IN 1 .. cardinality(affected) LOOP
            EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', affected[i]);
        END LOOP;
        DROP TABLE IF EXISTS pg_temp.pgembed_merge_report, pg_temp.pgembed_merge_0;
        CREATE TEMP TABLE pgembed_merge_report (
            place integer GENERATED ALWAYS AS IDENTITY, relation text, "by" text, action text, rows bigint
        ) ON COMMIT DROP;
        EXECUTE format(
            $query$
            CREATE TEMP TABLE pgembed_merge_0 ON COMMIT DROP AS
            SELECT %1$s, g.dropped AS dropped_key, g.kept AS kept_key
              FROM unnest($1, $2) AS g (dropped, kept)
             CROSS JOIN LATERAL jsonb_populate_record(NULL::%2$s, g.dropped) AS a
             CROSS JOIN LATERAL jsonb_populate_record(NULL::%2$s, g.kept) AS b
              JOIN %2$s AS d ON %3$s
              LEFT JOIN %2$s AS k ON %4$s
            $query$,
            (SELECT string_agg(format('d.%I AS d%s, k.%1$I AS k%2$s', key, n), ', ')
               FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
            target,
            (SELECT string_agg(format('d.%1$I = a.%1$I', key), ' AND ') FROM unnest(keys) AS key),
            (SELECT string_agg(format('k.%1$I = b.%1$I', key), ' AND ') FROM unnest(keys) AS key))
            USING dropped, kept;
        SELECT m.kept_key INTO problem FROM pg_temp.pgembed_merge_0 AS m WHERE m.k1 IS NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'table % has no row %, which is to be kept', target, problem USING ERRCODE = 'no_data_found';
        END IF;
        EXECUTE format(
            'SELECT m.dropped_key FROM pg_temp.pgembed_merge_0 AS m JOIN pg_temp.pgembed_merge_0 AS o '
            'ON (%s) OR m.ctid <> o.ctid AND (%s) LIMIT 1',
            (SELECT string_agg(format('m.d%s = o.k%1$s', n), ' AND ') FROM generate_subscripts(keys, 1) AS n),
            (SELECT string_agg(format('m.d%s = o.d%1$s', n), ' AND ') FROM generate_subscripts(keys, 1) AS n))
            INTO problem;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'row % is to be dropped twice, or dropped and kept', problem
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Take the rows of pgembed.keep_list.';
        END IF;
        PERFORM pgembed.merge_rows(target, 0, 'deleted', NULL);
        -- What would be checked at the end of the transaction is checked here.
        FOR postponed IN SELECT c.conname, n.nspname, c.condeferred
                            FROM pg_constraint AS c JOIN pg_namespace AS n ON n.oid = c.connamespace
                           WHERE c.condeferrable AND c.conparentid = 0 AND c.conrelid = ANY (affected::oid[]) LOOP
            EXECUTE format('SET CONSTRAINTS %I.%I IMMEDIATE', postponed.nspname, postponed.conname);
            IF postponed.condeferred THEN
                EXECUTE format('SET CONSTRAINTS %I.%I DEFERRED', postponed.nspname, postponed.conname);
            END IF;
        END LOOP;
        SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY r.place), '[]') INTO report
          FROM pg_temp.pgembed_merge_report AS r;
        IF dry_run IS NOT FALSE THEN
            RAISE EXCEPTION 'a dry run' USING ERRCODE = 'PGDRY';
        END IF;
    EXCEPTION WHEN SQLSTATE 'PGDRY' THEN
        NULL; -- all is as it was
    END;
    RETURN QUERY
    SELECT r.relation, r."by", r.action, sum(r.rows)::bigint
      FROM jsonb_to_recordset(report) AS r (place integer, relation text, "by" text, action text, rows bigint)
     GROUP BY r.relation, r."by", r.action
     ORDER BY min(r.place);
END
$$;
COMMENT ON FUNCTION pgembed.merge_duplicates IS
    'make references to dropped rows references to kept ones, delete the dropped, and say what was changed';
