-- What a search is asked, refused where no rows can answer it.
CREATE OR REPLACE FUNCTION pgembed.check_query(
    relation regclass,
    vector_column name,
    dimensions integer,
    metric text,
    query @extschema:vector@.vector,
    k integer
)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query vector is NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Is the row that it comes from still to be filled?';
    ELSIF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'the number of rows is %, it must be at least 1', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF dimensions <> @extschema:vector@.vector_dims(query) THEN
        RAISE EXCEPTION 'the query vector has % dimensions, column % of table % has %',
            @extschema:vector@.vector_dims(query), quote_ident(vector_column), relation, dimensions
            USING ERRCODE = 'data_exception',
                  HINT = 'Encode the query with the encoder of the column; see pgembed.embedding_columns.';
    ELSIF metric = 'cosine' AND @extschema:vector@.vector_norm(query) = 0 THEN
        RAISE EXCEPTION 'a vector of zeros has no direction, so no cosine distance to anything'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- A column of the row t, as SQL.
CREATE OR REPLACE FUNCTION pgembed.column_value(relation regclass, column_name name)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0
                      AND NOT a.attisdropped) THEN
        RAISE EXCEPTION 'table % has no column %', relation, quote_ident(column_name)
            USING ERRCODE = 'undefined_column';
    END IF;
    RETURN format('t.%I', column_name);
END
$$;

-- The columns of a key, as SQL that defines those of jsonb_to_record.
CREATE OR REPLACE FUNCTION pgembed.key_definition(relation regclass, keys name[])
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT string_agg(format('%I %s', k.name, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.place)
              FROM unnest(keys) WITH ORDINALITY AS k (name, place)
              JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = k.name);
END
$$;

-- The nearest rows of a table: keys, distances, and the value of one further column as text.
-- The same plan as in pgembed/queries/core/nearest.py: a scan of the index, and where that gives fewer rows than
-- asked for, or more than @ALIKE@ that are alike, an exact one (+ 0 keeps it from the index). What is indexed
-- decides which rows are candidates, the whole vectors which of them are nearest. Vectors of zeros have no
-- cosine distance (NaN).
CREATE OR REPLACE FUNCTION pgembed.nearest(
    relation regclass,
    vector_column name,
    query @extschema:vector@.vector,
    k integer,
    metric text,
    exact boolean,
    extra_column name,
    condition text DEFAULT 'true', -- that the row t fulfils, whose query is $1
    OUT key jsonb,
    OUT distance double precision,
    OUT score double precision,
    OUT extra text
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    extra_sql text := 'NULL::pg_catalog.text';
    leg text;
    whole text;  -- the distance between vectors
    coarse text; -- between what is indexed of them
    before jsonb;
BEGIN
    target := pgembed.vector_column(relation, vector_column, metric);
    PERFORM pgembed.check_query(relation, vector_column, target.dimensions, target.metric, query, k);
    IF extra_column IS NOT NULL THEN
        condition := format('%s AND %s IS NOT NULL', condition, pgembed.column_value(relation, extra_column));
        extra_sql := pgembed.column_value(relation, extra_column) || '::pg_catalog.text';
    END IF;
    IF exact IS NOT FALSE THEN
        target.method := NULL;
    END IF;
    before := pgembed.ask_for(target.method, target.lists, target.oversample, k);

    whole := format('t.%I %s $1::%s', vector_column, target.op, target.storage);
    coarse := CASE WHEN target.method IS NOT NULL AND target.oversample > 1
                   THEN format('%1$s %2$s (SELECT %1$s FROM (SELECT $1::%3$s) AS asked (%4$I))',
                               target.indexed, target.index_op, target.storage, vector_column)
                   ELSE whole END;

    SELECT format('SELECT %s, %s AS extra, ', string_agg(format('t.%I AS k%s', name, place), ', '), extra_sql)
      INTO leg
      FROM unnest(target.keys) WITH ORDINALITY AS named (name, place);
    RETURN QUERY EXECUTE format(
        $query$
        WITH candidates AS ( -- before Postgres 17, a further key keeps the index from being used
            %1$s %2$s AS distance FROM %3$s AS t WHERE $3 AND %4$s ORDER BY %9$s FETCH FIRST $5 ROWS WITH TIES
        ), ann AS MATERIALIZED (
            SELECT *, count(*) OVER (PARTITION BY distance) AS alike FROM candidates WHERE distance < 'NaN'
        ), settled AS MATERIALIZED (
            SELECT count(*) >= $2 AND max(alike) <= @ALIKE@ AS enough FROM ann
        ), found AS (
            SELECT * FROM ann WHERE (SELECT enough FROM settled)
            UNION ALL
            (%1$s (%2$s) + 0 AS distance, NULL FROM %3$s AS t
              WHERE t.%6$I IS NOT NULL AND %4$s AND NOT (SELECT enough FROM settled)
              ORDER BY (%2$s) + 0, %5$s LIMIT $2)
        )
        SELECT jsonb_build_object(%7$s), distance, pgembed.score($4, distance), extra
          FROM found
         WHERE distance < 'NaN'
         ORDER BY distance, %8$s
         LIMIT $2
        $query$,
        leg,
        whole,
        relation,
        condition,
        (SELECT string_agg(format('t.%I', name), ', ') FROM unnest(target.keys) AS name),
        vector_column,
        (SELECT string_agg(format('%L, k%s', name, place), ', ')
           FROM unnest(target.keys) WITH ORDINALITY AS named (name, place)),
        (SELECT string_agg(format('k%s', place), ', ')
           FROM unnest(target.keys) WITH ORDINALITY AS named (name, place)),
        coarse
    ) USING query, k, target.method IS NOT NULL, target.metric, k::bigint * target.oversample;
    PERFORM pgembed.put_back(before);
END
$$;

-- A query is a vector, a halfvec or a text: without that one, a literal or a parameter without a type would be
-- any of the others, which Postgres refuses as ambiguous.
DO $do$
DECLARE
    accepted text;
    definition text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        FOREACH definition IN ARRAY ARRAY[$search$
CREATE OR REPLACE FUNCTION pgembed.search(
    relation regclass,
    vector_column name,
    query @type@,
    k integer DEFAULT 10,
    max_distance double precision DEFAULT NULL,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision, score double precision)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
SELECT n.key, n.distance, n.score
  FROM pgembed.nearest(relation, vector_column, query::@extschema:vector@.vector, k, metric, exact, NULL)
  WITH ORDINALITY AS n (key, distance, score, extra, place)
 WHERE (n.distance <= max_distance) IS NOT FALSE
 ORDER BY n.place
$body$
$search$, $many$
CREATE OR REPLACE FUNCTION pgembed.search_many(
    relation regclass,
    vector_column name,
    queries @type@[],
    k integer DEFAULT 10,
    max_distance double precision DEFAULT NULL,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (query integer, key jsonb, distance double precision, score double precision, rank integer)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
SELECT q.place::integer, n.key, n.distance, n.score, n.place::integer
  FROM unnest(queries) WITH ORDINALITY AS q (vector, place)
 CROSS JOIN LATERAL pgembed.nearest(relation, vector_column, q.vector::@extschema:vector@.vector, k, metric, exact,
                                    NULL) WITH ORDINALITY AS n (key, distance, score, extra, place)
 WHERE q.vector IS NOT NULL AND (n.distance <= max_distance) IS NOT FALSE
 ORDER BY q.place, n.place
$body$
$many$, $classify$
CREATE OR REPLACE FUNCTION pgembed.knn_classify(
    relation regclass,
    vector_column name,
    label_column name,
    query @type@,
    k integer DEFAULT 15,
    weights text DEFAULT 'distance',
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (label text, share double precision, votes bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    chosen text := (pgembed.vector_column(relation, vector_column, metric)).metric;
BEGIN
    IF label_column IS NULL THEN
        RAISE EXCEPTION 'the label column is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF weights IS NULL OR weights NOT IN ('distance', 'uniform') THEN
        RAISE EXCEPTION 'weights are %, they must be distance or uniform', coalesce(quote_literal(weights), 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    WITH voters AS (
        SELECT n.extra, n.distance,
               CASE WHEN weights = 'uniform' THEN 1
                    WHEN chosen = 'inner_product'
                        THEN exp(greatest(min(n.distance) OVER () - n.distance, @LEAST_EXPONENT@))
                    ELSE 1 / (greatest(n.distance, 0) + @VOTE_OFFSET@)
               END AS weight
          FROM pgembed.nearest(relation, vector_column, query::@extschema:vector@.vector, k, chosen, exact,
                               label_column) AS n
    ), voted AS (
        SELECT v.extra, sum(v.weight) / sum(sum(v.weight)) OVER () AS part, count(*) AS heads,
               min(v.distance) AS nearest
          FROM voters AS v
         GROUP BY v.extra
    )
    SELECT v.extra, v.part, v.heads FROM voted AS v ORDER BY v.part DESC, v.nearest, v.extra;
END
$body$
$classify$] LOOP
            EXECUTE replace(definition, '@type@', accepted);
        END LOOP;
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.search(regclass, name, %s, integer, float8, text, boolean) IS %L',
            accepted,
            'the k rows whose vectors are nearest to the query, nearest first: primary key, distance, score');
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.search_many(regclass, name, %s[], integer, float8, text, boolean) IS %L',
            accepted,
            'the k rows nearest to each query: position of the query from 1, primary key, distance, score, rank');
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.knn_classify(regclass, name, name, %s, integer, text, text, boolean) IS %L',
            accepted,
            'the labels of the k nearest labelled rows, likeliest first: label, share of the vote, number of rows');
    END LOOP;
END
$do$;
