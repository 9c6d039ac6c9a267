-- The trigger of unique_within=: no vector within a score of an existing one gets in. AFTER the row was written it
-- raises an error; BEFORE that, it takes the vector away and writes the key of the existing row into the columns
-- of the link. It runs as the writer does, so rows that a policy hides from the writer do not count. Its columns
-- are those of its UPDATE OF, so that they may be renamed: the vector; those that rows are told apart by
-- (tenants); BEFORE the row is written also as many columns of the link as the third argument says, and the digest.
CREATE OR REPLACE FUNCTION pgembed.guard_meaning()
RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation regclass := coalesce(pg_partition_root(TG_RELID), TG_RELID);
    min_score double precision := TG_ARGV[0];
    metric text := TG_ARGV[1];
    names text[];
    storage text;
    op text;
    keys text[];
    given text;
    place bigint;
    standing record;
    links text[] := '{}';
    digest text;
    own record := NEW;
    unsettled boolean;
BEGIN
    SELECT array_agg(a.attname::text ORDER BY u.place),
           (array_agg(format('%I.%I', n.nspname, t.typname) ORDER BY u.place))[1],
           (array_agg(format('OPERATOR(%I.%s)', n.nspname,
                             CASE metric WHEN 'cosine' THEN '<=>' WHEN 'l2' THEN '<->'
                                         WHEN 'inner_product' THEN '<#>' WHEN 'l1' THEN '<+>' END)
                      ORDER BY u.place))[1]
      INTO names, storage, op
      FROM pg_trigger AS g
     CROSS JOIN LATERAL unnest(g.tgattr::smallint[]) WITH ORDINALITY AS u (attnum, place)
      JOIN pg_attribute AS a ON a.attrelid = g.tgrelid AND a.attnum = u.attnum
      JOIN pg_type AS t ON t.oid = a.atttypid
      JOIN pg_namespace AS n ON n.oid = t.typnamespace
     WHERE g.tgrelid = TG_RELID AND g.tgname = TG_NAME;
    SELECT array_agg(a.attname::text ORDER BY k.place)
      INTO keys
      FROM pg_index AS i
     CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
      JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts;
    IF keys IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key', relation
            USING ERRCODE = 'invalid_table_definition',
                  HINT = 'The guard tells rows apart by it: ALTER TABLE ... ADD PRIMARY KEY.';
    END IF;

    IF TG_WHEN = 'BEFORE' THEN
        digest := names[cardinality(names)];
        links := names[cardinality(names) - TG_ARGV[2]::integer : cardinality(names) - 1];
        names := names[:cardinality(names) - TG_ARGV[2]::integer - 1];
        IF TG_OP = 'UPDATE' THEN
            own := OLD; -- which is what the table holds
        END IF;
        EXECUTE format('SELECT ($1).%I IS NULL', names[1]) INTO unsettled USING NEW;
        IF unsettled THEN
            -- A link without its text, to itself, or of another tenant or text, would make the row look fresh.
            EXECUTE (SELECT format('SELECT ($1).%1$I IS NULL OR %2$s OR %3$s OR ($1).%1$I IS DISTINCT FROM ($2).%1$I '
                                   'AND NOT (%4$s)', digest,
                                   '(' || string_agg(format('coalesce(($1).%I = ($1).%I, false)', link, key), ' AND ')
                                   || ')',
                                   (SELECT coalesce(string_agg(format('($1).%1$I IS DISTINCT FROM ($2).%1$I', each),
                                                               ' OR '), 'false') FROM unnest(names[2:]) AS p (each)),
                                   string_agg(format('($1).%1$I IS DISTINCT FROM ($2).%1$I', link), ' OR '))
                       FROM unnest(links, keys) AS l (link, key))
               INTO unsettled USING NEW, own;
            IF unsettled THEN
                NEW := jsonb_populate_record(NEW, (SELECT jsonb_object_agg(each, NULL) FROM unnest(links) AS l (each)));
            END IF;
            RETURN NEW;
        END IF;
    END IF;

    -- A snapshot that is older than the lock does not show what the lock was waited for.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'the guard of table % works at READ COMMITTED only, found %',
            relation, upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Write to this table in transactions that are READ COMMITTED.';
    END IF;
    place := hashtextextended(format('pgembed guard %s %s', relation::oid, names[1]), 0);
    IF cardinality(names) > 1 THEN
        EXECUTE (SELECT format('SELECT hash_record_extended(ROW(%s), $2)',
                               string_agg(format('($1).%I', each), ', ' ORDER BY n))
                   FROM unnest(names[2:]) WITH ORDINALITY AS u (each, n))
           INTO place USING NEW, place;
    END IF;
    PERFORM pg_advisory_xact_lock(place);

    -- As text, so that a vector that is stored out of line is fetched once, not for each comparison.
    EXECUTE format('SELECT ($1).%I::text', names[1]) INTO given USING NEW;
    -- The distance plus 0 is what no index is in the order of: all rows are compared. The key of NEW is NULL where a
    -- later trigger gives it.
    EXECUTE format(
        'SELECT %1$s AS key, t.%2$I %3$s $2::%4$s AS distance FROM %5$s AS t '
        'WHERE t.%2$I %3$s $2::%4$s <= $3 AND (%6$s) IS NOT TRUE%7$s '
        'ORDER BY (t.%2$I %3$s $2::%4$s) + 0::double precision LIMIT 1',
        (SELECT format(CASE WHEN cardinality(keys) = 1 THEN 'to_jsonb(%s)' ELSE 'jsonb_build_array(%s)' END,
                       string_agg(format('t.%I', each), ', ' ORDER BY n))
           FROM unnest(keys) WITH ORDINALITY AS u (each, n)),
        names[1], op, storage, relation,
        (SELECT string_agg(format('t.%1$I = ($4).%1$I', each), ' AND ') FROM unnest(keys) AS u (each)),
        (SELECT coalesce(string_agg(
                    format(' AND (t.%1$I = ($1).%1$I OR t.%1$I IS NULL AND ($1).%1$I IS NULL)', each), ''), '')
           FROM unnest(names[2:]) AS u (each)))
       INTO standing USING NEW, given, pgembed.distance(metric, min_score), own;
    IF TG_WHEN = 'BEFORE' THEN
        RETURN jsonb_populate_record(
            NEW,
            (SELECT jsonb_object_agg(u.link, CASE cardinality(links) WHEN 1 THEN standing.key
                                             ELSE standing.key -> (u.n - 1)::integer END)
               FROM unnest(links) WITH ORDINALITY AS u (link, n))
            || CASE WHEN standing.key IS NULL THEN '{}' ELSE jsonb_build_object(names[1], NULL) END);
    ELSIF standing.key IS NOT NULL THEN
        RAISE EXCEPTION 'a row of table % means the same as row %: its % has a score of % or more',
            relation, standing.key, quote_ident(names[1]), min_score
            USING ERRCODE = '23PGE',
                  DETAIL = jsonb_build_object('key', standing.key,
                                              'score', pgembed.score(metric, standing.distance))::text,
                  HINT = 'Keep the row that is there, or change the text.',
                  SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME, COLUMN = names[1];
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION pgembed.guard_meaning IS
    'trigger function of unique_within=: refuses a vector within a score of an existing one, with SQLSTATE 23PGE, '
    'or links its row to that';
