-- What sql/35_merges.sql is made of: the rows that refer to dropped rows, how they change, and what they would break.
-- Rows are known by their primary key, or by their place where a table has none. Of the temporary tables,
-- pgembed_merge_N holds which rows are merged into which (d1, ..., k1, ...), and pgembed_batch_N the rows that an
-- update will change.
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

-- Columns of a table with their types, as jsonb_to_record takes them.
CREATE OR REPLACE FUNCTION pgembed.typed_columns(relation regclass, names name[])
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ')
  FROM pg_attribute AS a
 WHERE a.attrelid = relation AND a.attname = ANY (names)
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
    dropped text := (SELECT string_agg(format('r.%I = m.d%s', key, n), ' AND ')
                       FROM unnest(keys) WITH ORDINALITY AS u (key, n));
    kept text := (SELECT string_agg(format('k.%I = m.k%s', key, n), ' AND ')
                    FROM unnest(keys) WITH ORDINALITY AS u (key, n));
    goes text;
    fk record;
    part record;
    added bigint;
    total bigint;
    rounds bigint := 0;
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS %s', batch);
    EXECUTE format('CREATE TEMP TABLE pgembed_batch_%s (relation regclass, part oid, place tid, changes jsonb, '
                   'cleared boolean, PRIMARY KEY (part, place)) ON COMMIT DROP', depth);
    SELECT * INTO fk FROM pgembed.references_to(relation) AS f WHERE f.name = reference;
    goes := CASE WHEN fk.referring = relation
                 THEN format('EXISTS (SELECT FROM %s AS x WHERE %s)', mapping,
                             (SELECT string_agg(format('c.%I = x.d%s', key, n), ' AND ')
                                FROM unnest(keys) WITH ORDINALITY AS u (key, n)))
                 ELSE 'false' END;
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
        dropped, kept, fk.referring, fk.same,
        (SELECT string_agg(format('(%L, to_jsonb(r.%2$I), to_jsonb(k.%2$I))', col, ref), ', ')
           FROM unnest(fk.columns, fk.referred) AS u (col, ref)),
        goes)
        USING fk.referring;

    LOOP  -- what refers to columns that change follows, and what will refer to them
        EXECUTE format(
            $query$
            INSERT INTO %1$s AS known
            SELECT $1, c.tableoid, c.ctid, jsonb_object_agg(named.col, b.changes -> named.ref), false
              FROM %2$s AS m
              JOIN %3$s AS r ON %4$s
              JOIN %3$s AS k ON %5$s
              JOIN %1$s AS b ON b.part = k.tableoid AND b.place = k.ctid
              JOIN %6$s AS c ON %7$s
             CROSS JOIN LATERAL unnest($2, $3) AS named (col, ref)
             WHERE b.changes ? named.ref::text AND NOT (%8$s) AND (c.tableoid, c.ctid) <> (k.tableoid, k.ctid)
             GROUP BY c.tableoid, c.ctid
            ON CONFLICT (part, place) DO UPDATE SET changes = known.changes || excluded.changes
             WHERE NOT known.changes @> excluded.changes
            $query$,
            batch, mapping, relation, dropped, kept, fk.referring, fk.same, goes)
            USING fk.referring, fk.columns, fk.referred;
        GET DIAGNOSTICS total = ROW_COUNT;
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
                 WHERE b.relation = $4 AND b.changes ? named.ref::text AND NOT (%5$s)
                 GROUP BY c.tableoid, c.ctid
                ON CONFLICT (part, place) DO UPDATE SET changes = known.changes || excluded.changes
                 WHERE NOT known.changes @> excluded.changes
                $query$,
                batch, part.relation, part.referring, part.same,
                CASE WHEN part.relation = relation AND part.name = reference
                     THEN format('EXISTS (SELECT FROM %s AS m WHERE %s) AND NOT (%s)', mapping, dropped, goes)
                     ELSE 'false' END)
                USING part.referring, part.columns, part.referred, part.relation;
            GET DIAGNOSTICS added = ROW_COUNT;
            total := total + added;
        END LOOP;
        EXIT WHEN total = 0;
        rounds := rounds + 1;
        EXECUTE format('SELECT count(*) FROM %s', batch) INTO added;
        IF rounds > added + added THEN
            RAISE EXCEPTION 'rows that refer to table % would need two values of a column at once', relation
                USING ERRCODE = 'feature_not_supported';
        END IF;
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
              FROM (SELECT pgembed_part, pgembed_place, pgembed_moved,
                           first_value(pgembed_part) OVER same AS pgembed_into_part,
                           first_value(pgembed_place) OVER same AS pgembed_into_place,
                           row_number() OVER same AS pgembed_number
                      FROM (SELECT c.tableoid AS pgembed_part, c.ctid AS pgembed_place, false AS pgembed_moved,
                                   %3$s AS pgembed_key, c.*
                              FROM %4$s AS c
                             WHERE NOT EXISTS (SELECT FROM %5$s AS b WHERE b.part = c.tableoid AND b.place = c.ctid)
                               AND NOT (%6$s)
                            UNION ALL
                            SELECT c.tableoid, c.ctid, true, %3$s, v.*
                              FROM %4$s AS c JOIN %5$s AS b ON b.part = c.tableoid AND b.place = c.ctid
                             CROSS JOIN LATERAL jsonb_populate_record(c.*, b.changes) AS v) AS after
                     WHERE %7$s AND %8$s
                    WINDOW same AS (PARTITION BY %9$s ORDER BY pgembed_moved, pgembed_key)) AS ranked
              JOIN %4$s AS d ON d.tableoid = pgembed_part AND d.ctid = pgembed_place
              JOIN %4$s AS k ON k.tableoid = pgembed_into_part AND k.ctid = pgembed_into_place
             WHERE pgembed_moved AND pgembed_number > 1
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
