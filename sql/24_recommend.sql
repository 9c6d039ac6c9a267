-- The rows like some examples and unlike others, by the two strategies of pgembed/queries/search/recommendation.py.
-- An example is a key as searches return it, {"id": 1}, or a vector as an array of numbers.
CREATE OR REPLACE FUNCTION pgembed.recommend(
    relation regclass,
    vector_column name,
    positive jsonb[],
    negative jsonb[] DEFAULT '{}',
    k integer DEFAULT 10,
    strategy text DEFAULT 'average',
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    wrong jsonb;
    key_sql text;
    liked @extschema:vector@.vector[];
    disliked @extschema:vector@.vector[];
    own jsonb[];
    average @extschema:vector@.vector;
    rows_sql text;
BEGIN
    target := pgembed.vector_column(relation, vector_column, metric);
    SELECT example INTO wrong FROM unnest(positive || negative) AS example
     WHERE coalesce(jsonb_typeof(example), 'null') NOT IN ('object', 'array') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'an example is %, it must be a key or a vector', coalesce(wrong::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Keys are objects, {"id": 1}; vectors are arrays, [1, 2].';
    ELSIF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'the number of rows is %, it must be at least 1', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF strategy IS NULL OR strategy NOT IN ('average', 'best') THEN
        RAISE EXCEPTION 'the strategy is %, it must be average or best', coalesce(quote_literal(strategy), 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF coalesce(cardinality(positive), 0) = 0
          AND (strategy = 'average' OR coalesce(cardinality(negative), 0) = 0) THEN
        RAISE EXCEPTION 'there are no positive examples'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'The strategy best does with negative ones alone.';
    END IF;

    SELECT format('jsonb_build_object(%s)', string_agg(format('%1$L, t.%1$I', name), ', '))
      INTO key_sql FROM unnest(target.keys) AS name;
    EXECUTE format(
        $query$
        WITH given AS (
            SELECT example, true AS is_positive FROM unnest($1) AS example
            UNION ALL SELECT example, false FROM unnest($2) AS example
        ), examples AS (
            SELECT NULL::jsonb AS key, example::text::@extschema:vector@.vector AS vector, is_positive FROM given
             WHERE jsonb_typeof(example) = 'array'
            UNION ALL
            SELECT %1$s, t.%2$I::@extschema:vector@.vector, is_positive
              FROM given CROSS JOIN LATERAL jsonb_to_record(example) AS r (%5$s)
              JOIN %3$s AS t ON %4$s
             WHERE jsonb_typeof(example) = 'object'
        )
        SELECT array_agg(vector) FILTER (WHERE is_positive AND vector IS NOT NULL),
               array_agg(vector) FILTER (WHERE NOT is_positive AND vector IS NOT NULL),
               coalesce(array_agg(key) FILTER (WHERE key IS NOT NULL), '{}')
          FROM examples
        $query$,
        key_sql, vector_column, relation,
        (SELECT string_agg(format('t.%1$I = r.%1$I', name), ' AND ') FROM unnest(target.keys) AS name),
        pgembed.key_definition(relation, target.keys)
    ) INTO liked, disliked, own USING positive, negative;

    IF strategy = 'average' THEN
        IF liked IS NULL THEN -- examples without a vector do not count
            RETURN;
        END IF;
        average := (SELECT @extschema:vector@.avg(v) FROM unnest(liked) AS v);
        IF disliked IS NOT NULL THEN
            average := average OPERATOR(@extschema:vector@.+) (average OPERATOR(@extschema:vector@.-)
                (SELECT @extschema:vector@.avg(v) FROM unnest(disliked) AS v));
        END IF;
        RETURN QUERY
        SELECT n.key, n.distance, n.score
          FROM pgembed.nearest(relation, vector_column, average, k + cardinality(own), target.metric, exact, NULL)
               WITH ORDINALITY AS n (key, distance, score, extra, place)
         WHERE n.key <> ALL (own)
         ORDER BY n.place
         LIMIT k;
        RETURN;
    END IF;

    IF exact IS NOT FALSE OR target.method IS NULL OR liked IS NULL THEN
        rows_sql := format('SELECT %s AS key, t.%I::@extschema:vector@.vector AS vector FROM %s AS t WHERE t.%2$I IS NOT NULL',
                           key_sql, vector_column, relation);
    ELSE
        rows_sql := 'SELECT DISTINCT ON (n.key) n.key, n.extra::@extschema:vector@.vector AS vector
                       FROM unnest($1) AS q CROSS JOIN LATERAL pgembed.nearest($6, $7, q, $8, $4, false, $7) AS n';
    END IF;
    RETURN QUERY EXECUTE format(
        $query$
        SELECT r.key, near.liked,
               CASE WHEN near.disliked IS NULL OR s.liked > s.disliked THEN s.liked ELSE -s.disliked * s.disliked END
                   AS score
          FROM (%1$s) AS r
         CROSS JOIN LATERAL (
               SELECT (SELECT min(r.vector %2$s v) FROM unnest($1) AS v WHERE r.vector %2$s v < 'NaN') AS liked,
                      (SELECT min(r.vector %2$s v) FROM unnest($2) AS v WHERE r.vector %2$s v < 'NaN') AS disliked
               ) AS near
         CROSS JOIN LATERAL (
               SELECT pgembed.score($4, near.liked) AS liked, pgembed.score($4, near.disliked) AS disliked) AS s
         WHERE r.key <> ALL ($3) AND (near.liked IS NOT NULL OR near.disliked IS NOT NULL)
         ORDER BY score DESC, r.key
         LIMIT $5
        $query$, rows_sql, target.op
    ) USING liked, disliked, own, target.metric, k, relation, vector_column,
            greatest(@CANDIDATES_PER_ROW@ * k::bigint, @CANDIDATES_FLOOR@)::integer + cardinality(own);
END
$$;
COMMENT ON FUNCTION pgembed.recommend IS
    'the k rows like the positive examples and unlike the negative ones, best first: primary key, distance, score';
