-- Duplicates made one: references to dropped rows become references to kept ones, then dropped rows are deleted.
-- The temporary table pgembed_merge_report holds what was done; the others are those of sql/41_references.sql.

-- The keys in the mappings change as the batch will change the rows.
CREATE OR REPLACE FUNCTION pgembed.follow_keys(path regclass[], relation regclass, batch text)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys name[] := pgembed.identity_columns(relation);
    side text;
BEGIN
    FOR depth IN 0 .. cardinality(path) - 1 LOOP
        CONTINUE WHEN path[depth + 1] <> relation OR keys[1] = 'tableoid';
        FOREACH side IN ARRAY ARRAY['d', 'k'] LOOP
            EXECUTE format(
                'UPDATE pg_temp.pgembed_merge_%s AS m SET %s FROM %s AS b '
                'JOIN %s AS c ON c.tableoid = b.part AND c.ctid = b.place '
                'CROSS JOIN LATERAL jsonb_populate_record(c.*, b.changes) AS v WHERE b.changes ?| $1 AND %s', depth,
                (SELECT string_agg(format('%s%s = v.%I', side, n, key), ', ')
                   FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
                batch, relation,
                (SELECT string_agg(format('c.%I = m.%s%s', key, side, n), ' AND ')
                   FROM unnest(keys) WITH ORDINALITY AS u (key, n)))
                USING keys::text[];
        END LOOP;
    END LOOP;
END
$$;

-- Merge the rows of pgembed_merge_(depth), which are of the last table of path; the tables before it are those of
-- the mappings of lesser depth. What would break a unique index is merged by the same rules. Tables that refer to
-- each other by columns that change are updated in one statement, at whose end foreign keys are checked.
CREATE OR REPLACE FUNCTION pgembed.merge_rows(path regclass[], reason text, "by" text)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation regclass := path[cardinality(path)];
    depth integer := cardinality(path) - 1;
    batch text := format('pg_temp.pgembed_batch_%s', depth);
    mapping text := format('pg_temp.pgembed_merge_%s', depth);
    keys name[] := pgembed.identity_columns(relation);
    fk record;
    conflict record;
    part record;
    updates text[];
    is_left boolean;
    count bigint;
BEGIN
    FOR fk IN SELECT * FROM pgembed.references_to(relation) LOOP
        LOOP
            PERFORM pgembed.collect_batch(relation, fk.name, depth);
            conflict := pgembed.find_conflict(relation, depth);
            EXIT WHEN conflict.relation IS NULL;
            PERFORM pgembed.merge_rows(path || conflict.relation, 'merged', conflict.index::text);
        END LOOP;
        updates := '{}';
        FOR part IN EXECUTE format(
            'SELECT relation, array_agg(DISTINCT col::name) AS cols FROM %s '
            'CROSS JOIN LATERAL jsonb_object_keys(changes) AS col GROUP BY relation ORDER BY relation::text', batch)
        LOOP
            updates := updates || format(
                'u%s AS (UPDATE %s AS c SET %s FROM %s AS b CROSS JOIN LATERAL '
                'jsonb_to_record(b.changes) AS v (%5$s) WHERE c.tableoid = b.part AND c.ctid = b.place)',
                cardinality(updates), part.relation,
                (SELECT string_agg(format('%1$I = CASE WHEN b.changes ? %1$L THEN v.%1$I ELSE c.%1$I END', col), ', ')
                   FROM unnest(part.cols) AS col),
                batch, pgembed.typed_columns(part.relation, part.cols));
            PERFORM pgembed.follow_keys(path, part.relation, batch);
        END LOOP;
        CONTINUE WHEN updates = '{}';
        EXECUTE format(
            'INSERT INTO pg_temp.pgembed_merge_report (relation, "by", action, rows) '
            'SELECT relation::text, $1, CASE WHEN cleared THEN ''cleared'' ELSE ''moved'' END, count(*) FROM %s '
            'GROUP BY relation, cleared ORDER BY relation::text, cleared', batch) USING fk.name;
        EXECUTE 'WITH ' || array_to_string(updates, ', ') || ' SELECT';
    END LOOP;
    -- Else ON DELETE would act on them.
    FOR fk IN SELECT * FROM pgembed.references_to(relation) LOOP
        EXECUTE format(
            'SELECT EXISTS (SELECT FROM %s AS m JOIN %s AS r ON %s JOIN %s AS c ON %s WHERE NOT (%s))',
            mapping, relation,
            (SELECT string_agg(format('r.%I = m.d%s', key, n), ' AND ')
               FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
            fk.referring, fk.same,
            CASE WHEN fk.referring = relation
                 THEN format('EXISTS (SELECT FROM %s AS x WHERE %s)', mapping,
                             (SELECT string_agg(format('c.%I = x.d%s', key, n), ' AND ')
                                FROM unnest(keys) WITH ORDINALITY AS u (key, n)))
                 ELSE 'false' END)
           INTO is_left;
        IF is_left THEN
            RAISE EXCEPTION 'rows of table % still refer to rows that are to be dropped, by %', fk.referring, fk.name
                USING ERRCODE = 'triggered_data_change_violation',
                      HINT = 'A trigger, a rule or a policy has kept them from being changed.';
        END IF;
    END LOOP;
    EXECUTE format(
        'DELETE FROM %s AS t USING %s AS m WHERE %s', relation, mapping,
        (SELECT string_agg(format('t.%I = m.d%s', key, n), ' AND ')
           FROM unnest(keys) WITH ORDINALITY AS u (key, n)));
    GET DIAGNOSTICS count = ROW_COUNT;
    FOR above IN 0 .. depth - 1 LOOP  -- rows that others are merged into, or that are dropped already
        CONTINUE WHEN path[above + 1] <> relation;
        EXECUTE format(
            'UPDATE pg_temp.pgembed_merge_%s AS m SET %s FROM %s AS n WHERE %s', above,
            (SELECT string_agg(format('k%s = n.k%1$s', n), ', ') FROM generate_subscripts(keys, 1) AS n), mapping,
            (SELECT string_agg(format('m.k%s = n.d%1$s', n), ' AND ') FROM generate_subscripts(keys, 1) AS n));
        EXECUTE format(
            'DELETE FROM pg_temp.pgembed_merge_%s AS m USING %s AS n WHERE %s', above, mapping,
            (SELECT string_agg(format('m.d%s = n.d%1$s', n), ' AND ') FROM generate_subscripts(keys, 1) AS n));
    END LOOP;
    IF depth > 0 THEN  -- the unique index would find the same rows again
        EXECUTE format('SELECT $1 < count(*) FROM %s', mapping) INTO is_left USING count;
        IF is_left THEN
            RAISE EXCEPTION 'rows of table % that would break the unique index % could not be deleted', relation, "by"
                USING ERRCODE = 'triggered_data_change_violation',
                      HINT = 'A trigger, a rule or a policy has kept them from being deleted.';
        END IF;
    END IF;
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
    reached regclass[];
    hidden record;
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
    BEGIN
        LOOP  -- until no foreign key has been made while a lock was waited for
            WITH RECURSIVE reached AS (
                SELECT target::oid AS table_oid
                UNION
                SELECT f.conrelid FROM reached AS r JOIN pg_constraint AS f ON f.confrelid = r.table_oid AND f.contype = 'f'
            )
            SELECT array_agg(r.table_oid::regclass ORDER BY r.table_oid) INTO reached FROM reached AS r;
            EXIT WHEN reached = affected;
            affected := reached;
            FOR i IN 1 .. cardinality(affected) LOOP
                EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', affected[i]);
            END LOOP;
        END LOOP;
        SELECT f.conname, f.conrelid::regclass AS referring INTO hidden
          FROM pg_constraint AS f
         WHERE f.contype = 'f' AND f.confrelid = ANY (affected::oid[]) AND f.confdeltype NOT IN ('a', 'r')
           AND row_security_active(f.conrelid)
         LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'policies may hide rows of table % from role %, and ON DELETE of % would change them',
                hidden.referring, current_user, hidden.conname
                USING ERRCODE = 'insufficient_privilege',
                      HINT = 'Merge as a role that row-level security does not apply to.';
        END IF;
        DROP TABLE IF EXISTS pg_temp.pgembed_merge_report, pg_temp.pgembed_merge_0;
        CREATE TEMP TABLE pgembed_merge_report (
            place integer GENERATED ALWAYS AS IDENTITY, relation text, "by" text, action text, rows bigint
        ) ON COMMIT DROP;
        EXECUTE format(
            $query$
            CREATE TEMP TABLE pgembed_merge_0 ON COMMIT DROP AS
            SELECT %1$s, g.dropped AS dropped_key, g.kept AS kept_key
              FROM unnest($1, $2) AS g (dropped, kept)
             CROSS JOIN LATERAL jsonb_to_record(g.dropped) AS a (%5$s)
             CROSS JOIN LATERAL jsonb_to_record(g.kept) AS b (%5$s)
              JOIN %2$s AS d ON %3$s
              LEFT JOIN %2$s AS k ON %4$s
            $query$,
            (SELECT string_agg(format('d.%I AS d%s, k.%1$I AS k%2$s', key, n), ', ')
               FROM unnest(keys) WITH ORDINALITY AS u (key, n)),
            target,
            (SELECT string_agg(format('d.%1$I = a.%1$I', key), ' AND ') FROM unnest(keys) AS key),
            (SELECT string_agg(format('k.%1$I = b.%1$I', key), ' AND ') FROM unnest(keys) AS key),
            pgembed.typed_columns(target, keys))
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
        PERFORM pgembed.merge_rows(ARRAY[target], 'deleted', NULL);
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
