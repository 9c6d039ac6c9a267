-- Labels for many queries or rows, as pgembed/queries/classification/knn.py and votes.py elect them.

-- What the labels of a column are: arrays, of which each element is a label, numbers to average, or classes.
CREATE OR REPLACE FUNCTION pgembed.label_kind(relation regclass, label_column name, regression boolean)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind record;
BEGIN
    IF label_column IS NULL THEN
        RAISE EXCEPTION 'the label column is NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM pgembed.column_value(relation, label_column);
    SELECT a.atttypid::regtype AS type, b.typcategory = 'A' AS is_array,
           b.oid IN ('float4'::regtype, 'float8'::regtype, 'numeric'::regtype) AS has_fractions,
           b.oid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) AS is_whole
      INTO kind
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
      JOIN pg_type AS b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
     WHERE a.attrelid = relation AND a.attname = label_column;
    IF regression AND NOT (kind.has_fractions OR kind.is_whole) THEN
        RAISE EXCEPTION 'regression is true, and the labels are of the type %, they must be numbers', kind.type
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN CASE WHEN coalesce(regression, kind.has_fractions) THEN 'number' WHEN kind.is_array THEN 'array'
                ELSE 'class' END;
END
$$;

-- Their type, as SQL.
CREATE OR REPLACE FUNCTION pgembed.label_type(relation regclass, label_column name)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format_type(a.atttypid, a.atttypmod) || coalesce(' COLLATE ' || nullif(a.attcollation, 0)::regcollation, '')
  FROM pg_attribute AS a
 WHERE a.attrelid = relation AND a.attname = label_column
$$;

-- The votes of neighbours, as common table expressions behind those of pgembed.neighbours_query: votes (n, label,
-- weight, counts, distance, rank) and won (n, label, share, votes, margin, voters, nearest), where a vote that is
-- too far away weighs nothing and does not count.
CREATE OR REPLACE FUNCTION pgembed.election_query(
    relation regclass,
    vector_column name,
    label_column name,
    kind text,
    weights text,
    temperature double precision,
    metric text,
    min_share double precision DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    prior text DEFAULT NULL
)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen text := (pgembed.vector_column(relation, vector_column, metric)).metric;
    sizes text := '';
BEGIN
    IF weights IS NULL OR weights NOT IN ('distance', 'uniform', 'softmax') THEN
        RAISE EXCEPTION 'weights are %, they must be distance, uniform or softmax',
            coalesce(quote_literal(weights), 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF prior <> 'balanced' OR prior IS NOT NULL AND kind <> 'class' THEN
        RAISE EXCEPTION 'the prior is %, of labels of the kind %', quote_literal(prior), kind
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'It must be balanced or NULL, and labels that are arrays or averaged have none.';
    ELSIF prior IS NOT NULL THEN
        sizes := format(
            ', sizes AS MATERIALIZED (SELECT %1$s::text AS label, count(*) AS size FROM %2$s AS t '
            'WHERE %1$s IS NOT NULL AND t.%3$I IS NOT NULL GROUP BY 1)',
            pgembed.column_value(relation, label_column), relation, vector_column);
    END IF;
    RETURN sizes || format(
        $query$
        , votes AS MATERIALIZED (
            SELECT f.n, f.extra::%1$s AS label, f.distance, f.rank, c.counts::integer AS counts,
                   CASE WHEN c.counts THEN %2$s ELSE 0 END AS weight
              FROM (SELECT *, min(distance) OVER (PARTITION BY n) AS nearest FROM found) AS f
             CROSS JOIN LATERAL (SELECT (f.distance <= %3$L) IS NOT FALSE AS counts) AS c %4$s
        ), won AS (%5$s)
        $query$,
        pgembed.label_type(relation, label_column),
        CASE WHEN weights = 'uniform' THEN '1::float8'
             WHEN weights = 'softmax' OR chosen = 'inner_product'
                 THEN format('exp(greatest((f.nearest - f.distance) / %s, @LEAST_EXPONENT@))',
                             CASE WHEN weights = 'softmax' THEN temperature ELSE 1 END)
             ELSE '1 / (greatest(f.distance, 0) + @VOTE_OFFSET@)' END || CASE WHEN prior IS NULL THEN '' ELSE ' / s.size' END,
        max_distance,
        CASE WHEN prior IS NULL THEN '' ELSE 'JOIN sizes AS s ON s.label = f.extra' END,
        CASE kind
        WHEN 'number' THEN
            $means$
            SELECT n, sum(weight * label::float8 ORDER BY rank) / nullif(sum(weight ORDER BY rank), 0) AS label,
                   NULL::float8 AS share, sum(counts) AS votes, NULL::float8 AS margin, sum(counts) AS voters,
                   min(distance) AS nearest
              FROM votes GROUP BY n
            $means$
        WHEN 'array' THEN format(
            $arrays$
            SELECT s.n, coalesce(array_agg(s.label ORDER BY s.label) FILTER (WHERE s.given), '{}') AS label,
                   min(s.share) FILTER (WHERE s.given) AS share, min(s.votes) FILTER (WHERE s.given) AS votes,
                   min(s.share) FILTER (WHERE s.given) - coalesce(max(s.share) FILTER (WHERE NOT s.given), 0) AS margin,
                   min(s.voters) AS voters, min(s.nearest) AS nearest
              FROM (SELECT e.*, t.label, t.votes, t.weight / nullif(e.weight, 0) AS share,
                           t.weight / nullif(e.weight, 0) %s AS given
                      FROM (SELECT n, sum(weight ORDER BY rank) AS weight, sum(counts) AS voters,
                                   min(distance) AS nearest
                              FROM votes GROUP BY n) AS e (n, weight, voters, nearest)
                      LEFT JOIN (SELECT v.n, u.label, sum(v.weight ORDER BY v.rank) AS weight, sum(v.counts) AS votes
                                   FROM votes AS v CROSS JOIN LATERAL (SELECT DISTINCT unnest(v.label) AS label) AS u
                                  WHERE u.label IS NOT NULL GROUP BY v.n, u.label) AS t ON t.n = e.n) AS s
             GROUP BY s.n
            $arrays$,
            coalesce('>= ' || quote_literal(min_share), '> 0.5'))
        ELSE
            $classes$
            SELECT *
              FROM (SELECT t.n, t.label, t.weight / nullif(sum(t.weight) OVER every, 0) AS share, t.votes,
                           (t.weight - coalesce(lead(t.weight) OVER best_first, 0))
                               / nullif(sum(t.weight) OVER every, 0) AS margin,
                           sum(t.votes) OVER every AS voters, min(t.nearest) OVER every AS nearest,
                           row_number() OVER best_first AS place
                      FROM (SELECT n, label, sum(weight ORDER BY rank) AS weight, sum(counts) AS votes,
                                   min(distance) AS nearest
                              FROM votes GROUP BY n, label) AS t
                    WINDOW every AS (PARTITION BY t.n),
                           best_first AS (PARTITION BY t.n ORDER BY t.weight DESC, t.nearest, t.label)) AS ranked
             WHERE place = 1
            $classes$
        END);
END
$$;

-- What an answer must fulfil, refused where none can.
CREATE OR REPLACE FUNCTION pgembed.check_limits(
    min_share double precision,
    min_margin double precision,
    max_distance double precision,
    temperature double precision,
    min_neighbours integer DEFAULT NULL,
    k integer DEFAULT NULL
)
RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF min_share NOT BETWEEN 0 AND 1 OR min_margin NOT BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'min_share is %, min_margin is %, they must be from 0 to 1', min_share, min_margin
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF max_distance = 'NaN' THEN
        RAISE EXCEPTION 'max_distance is NaN, it must be a number' USING ERRCODE = 'invalid_parameter_value';
    ELSIF (temperature > 0 AND temperature < 'Infinity') IS NOT TRUE THEN
        RAISE EXCEPTION 'the temperature is %, it must be above 0', coalesce(temperature::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF min_neighbours NOT BETWEEN 1 AND k THEN
        RAISE EXCEPTION 'min_neighbours is %, it must be 1 to % neighbours', min_neighbours, k
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- The queries as SQL, (n, key, vector, also): the rows of the keys in $2, which also names, or the vectors in $1.
CREATE OR REPLACE FUNCTION pgembed.asked_query(relation regclass, vector_column name, keys jsonb[])
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column);
    wrong jsonb := (SELECT e FROM unnest(keys) AS e
                     WHERE jsonb_typeof(e) IS DISTINCT FROM 'object' OR NOT e ?& target.keys::text[] LIMIT 1);
BEGIN
    IF array_position(keys, NULL) IS NOT NULL OR wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a query is %, it must be a key of table %', coalesce(wrong::text, 'NULL'), relation
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Keys are objects with the columns ' || array_to_string(target.keys, ', ') || '.';
    ELSIF keys IS NULL THEN
        RETURN 'SELECT q.place AS n, NULL::jsonb AS key, q.vector, NULL::jsonb AS also '
               'FROM unnest($1) WITH ORDINALITY AS q (vector, place)';
    END IF;
    RETURN (
        SELECT format('SELECT q.place AS n, jsonb_build_object(%s) AS key, t.%I AS vector, q.key AS also '
                      'FROM unnest($2) WITH ORDINALITY AS q (key, place) '
                      'CROSS JOIN LATERAL jsonb_to_record(q.key) AS r (%5$s) LEFT JOIN %3$s AS t ON %4$s',
                      string_agg(format('%1$L, t.%1$I', name), ', '), vector_column, relation,
                      string_agg(format('t.%1$I = r.%1$I', name), ' AND '), pgembed.key_definition(relation, target.keys))
          FROM unnest(target.keys) AS name);
END
$$;

-- The labels of vectors, or of the rows of the table that have these keys, which do not vote for themselves.
CREATE OR REPLACE FUNCTION pgembed.elect(
    relation regclass,
    vector_column name,
    label_column name,
    vectors @extschema:vector@.vector[],
    keys jsonb[],
    k integer,
    weights text,
    min_share double precision,
    min_margin double precision,
    max_distance double precision,
    min_neighbours integer,
    temperature double precision,
    metric text,
    exact boolean,
    prior text,
    regression boolean
)
RETURNS TABLE (place bigint, key jsonb, label text, share double precision, votes bigint, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
    kind text := pgembed.label_kind(relation, label_column, regression);
BEGIN
    PERFORM pgembed.check_limits(min_share, min_margin, max_distance, temperature, min_neighbours, k);
    IF kind = 'number' AND (min_share IS NOT NULL OR min_margin IS NOT NULL) THEN
        RAISE EXCEPTION 'min_share and min_margin have no effect on labels that are averaged'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use max_distance or min_neighbours.';
    END IF;
    RETURN QUERY EXECUTE
        'WITH ' || pgembed.neighbours_query(relation, vector_column, label_column, k, target.metric, exact,
                                            pgembed.asked_query(relation, vector_column, keys))
        || pgembed.election_query(relation, vector_column, label_column, kind, weights, temperature, target.metric,
                                  min_share, max_distance, prior)
        || $query$
        SELECT j.n, j.also, CASE WHEN j.why IS NULL THEN j.label END, j.share, coalesce(j.votes, 0), j.margin,
               j.nearest, j.why
          FROM (SELECT a.n, a.also, w.label::text, w.share, w.votes, w.margin, w.nearest,
                       CASE WHEN a.vector IS NULL THEN 'no vector'
                            WHEN w.nearest > $3 THEN 'too far'
                            WHEN coalesce(w.voters, 0) < $4 THEN 'too few neighbours'
                            WHEN w.share < $5 THEN 'low share'
                            WHEN w.margin < $6 THEN 'low margin'
                       END AS why
                  FROM asked AS a LEFT JOIN won AS w ON w.n = a.n) AS j
         ORDER BY j.n
        $query$
        USING vectors, keys, max_distance,
              coalesce(min_neighbours, CASE WHEN max_distance IS NULL THEN k ELSE 1 END),
              CASE WHEN kind = 'class' THEN min_share END, min_margin;
END
$$;

DO $do$
DECLARE
    accepted text;
    arguments text := 'integer, text, float8, float8, float8, integer, float8, text, boolean';
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$,
                                    'text', 'jsonb'] LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS pgembed.knn_classify_many(regclass, name, name, %s[], %s)',
                       accepted, arguments);
        EXECUTE replace(replace(replace(replace($many$
CREATE OR REPLACE FUNCTION pgembed.knn_classify_many(
    relation regclass,
    vector_column name,
    label_column name,
    queries @type@[],
    k integer DEFAULT 15,
    weights text DEFAULT 'distance',
    min_share double precision DEFAULT NULL,
    min_margin double precision DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    min_neighbours integer DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false,
    prior text DEFAULT NULL,
    regression boolean DEFAULT NULL
)
RETURNS TABLE (@query@, label text, share double precision, votes bigint, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
SELECT @named@, e.label, e.share, e.votes, e.margin, e.nearest_distance, e.reason
  FROM pgembed.elect(relation, vector_column, label_column, @asked@, k, weights, min_share, min_margin,
                     max_distance, min_neighbours, temperature, metric, exact, prior, regression) AS e
 ORDER BY e.place
$body$
$many$, '@type@', accepted),
            '@query@', CASE accepted WHEN 'jsonb' THEN 'key jsonb' ELSE 'query integer' END),
            '@named@', CASE accepted WHEN 'jsonb' THEN 'e.key' ELSE 'e.place::integer' END),
            '@asked@', CASE accepted WHEN 'jsonb' THEN 'NULL, queries'
                                     ELSE 'queries::@extschema:vector@.vector[], NULL' END);
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.knn_classify_many(regclass, name, name, %s[], %s, text, boolean) IS %L',
            accepted, arguments,
            'a label for each query, a vector or the key of a row, from its k nearest labelled rows, or the reason '
            'for having none');
    END LOOP;
END
$do$;
