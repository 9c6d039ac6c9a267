-- Labels for many queries or rows, as pgembed/queries/classification/votes.py and pgembed/queries/classification/prototypes.py elect them.

-- The label whose vector is nearest: shares are of exp(-distance / temperature).
CREATE OR REPLACE FUNCTION pgembed.nearest_label(
    query @extschema:vector@.vector,
    labels text[],
    prototypes @extschema:vector@.vector[],
    metric text,
    temperature double precision,
    min_share double precision,
    min_margin double precision,
    max_distance double precision,
    OUT label text,
    OUT share double precision,
    OUT margin double precision,
    OUT nearest_distance double precision,
    OUT reason text
)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
WITH compared AS (
    SELECT p.label, CASE metric
               WHEN 'cosine' THEN query OPERATOR(@extschema:vector@.<=>) p.vector
               WHEN 'l2' THEN query OPERATOR(@extschema:vector@.<->) p.vector
               WHEN 'l1' THEN query OPERATOR(@extschema:vector@.<+>) p.vector
               ELSE query OPERATOR(@extschema:vector@.<#>) p.vector
           END AS distance
      FROM unnest(labels, prototypes) AS p (label, vector)
), weighed AS (
    SELECT c.label, c.distance,
           exp(greatest((min(c.distance) OVER () - c.distance) / temperature, @LEAST_EXPONENT@)) AS weight
      FROM compared AS c
     WHERE c.distance < 'NaN'
), ranked AS (
    SELECT w.label, w.distance, w.weight / sum(w.weight) OVER () AS share,
           (w.weight - coalesce(lead(w.weight) OVER best_first, 0)) / sum(w.weight) OVER () AS margin,
           row_number() OVER best_first AS place
      FROM weighed AS w
    WINDOW best_first AS (ORDER BY w.weight DESC, w.distance, w.label)
), judged AS (
    SELECT r.*, CASE WHEN query IS NULL THEN 'no vector'
                     WHEN r.distance > max_distance THEN 'too far'
                     WHEN r.label IS NULL THEN 'too few neighbours'
                     WHEN r.share < min_share THEN 'low share'
                     WHEN r.margin < min_margin THEN 'low margin'
                END AS reason
      FROM (VALUES (1)) AS one
      LEFT JOIN ranked AS r ON r.place = 1
)
SELECT CASE WHEN j.reason IS NULL THEN j.label END, j.share, j.margin, j.distance, j.reason FROM judged AS j
$$;
COMMENT ON FUNCTION pgembed.nearest_label IS
    'the label whose vector is nearest to a vector, with its share and margin, or the reason for having none';

DO $do$
DECLARE
    accepted text;
    definition text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        FOREACH definition IN ARRAY ARRAY[$many$
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
    exact boolean DEFAULT false
)
RETURNS TABLE (query integer, label text, share double precision, votes bigint, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    chosen text := (pgembed.vector_column(relation, vector_column, metric)).metric;
    least integer := coalesce(min_neighbours, CASE WHEN max_distance IS NULL THEN k ELSE 1 END);
BEGIN
    IF label_column IS NULL THEN
        RAISE EXCEPTION 'the label column is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF weights IS NULL OR weights NOT IN ('distance', 'uniform', 'softmax') THEN
        RAISE EXCEPTION 'weights are %, they must be distance, uniform or softmax',
            coalesce(quote_literal(weights), 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (temperature > 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'the temperature is %, it must be above 0', coalesce(temperature::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    WITH asked AS (
        SELECT q.place, q.vector FROM unnest(queries) WITH ORDINALITY AS q (vector, place)
    ), found AS (
        SELECT q.place, n.extra, n.distance, n.rank,
               CASE WHEN weights = 'uniform' THEN 1
                    WHEN weights = 'softmax' OR chosen = 'inner_product'
                        THEN exp(greatest((min(n.distance) OVER (PARTITION BY q.place) - n.distance)
                                          / CASE WHEN weights = 'softmax' THEN temperature ELSE 1 END,
                                          @LEAST_EXPONENT@))
                    ELSE 1 / (greatest(n.distance, 0) + @VOTE_OFFSET@)
               END AS weight,
               (n.distance <= max_distance) IS NOT FALSE AS counts
          FROM asked AS q
         CROSS JOIN LATERAL pgembed.nearest(relation, vector_column, q.vector::@extschema:vector@.vector, k, chosen,
                                            exact, label_column) WITH ORDINALITY AS n (key, distance, score, extra, rank)
         WHERE q.vector IS NOT NULL
    ), tally AS (
        SELECT f.place, f.extra, coalesce(sum(f.weight ORDER BY f.rank) FILTER (WHERE f.counts), 0) AS weight,
               count(*) FILTER (WHERE f.counts) AS heads, min(f.distance) AS nearest
          FROM found AS f
         GROUP BY f.place, f.extra
    ), ranked AS (
        SELECT t.place, t.extra, t.heads, t.weight / nullif(sum(t.weight) OVER every, 0) AS part,
               (t.weight - coalesce(lead(t.weight) OVER best_first, 0)) / nullif(sum(t.weight) OVER every, 0) AS lead,
               sum(t.heads) OVER every AS voters, min(t.nearest) OVER every AS nearest,
               row_number() OVER best_first AS standing
          FROM tally AS t
        WINDOW every AS (PARTITION BY t.place),
               best_first AS (PARTITION BY t.place ORDER BY t.weight DESC, t.nearest, t.extra)
    ), judged AS (
        SELECT q.place, r.extra, r.part, r.heads, r.lead, r.nearest,
               CASE WHEN q.vector IS NULL THEN 'no vector'
                    WHEN r.nearest > max_distance THEN 'too far'
                    WHEN coalesce(r.voters, 0) < least THEN 'too few neighbours'
                    WHEN r.part < min_share THEN 'low share'
                    WHEN r.lead < min_margin THEN 'low margin'
               END AS why
          FROM asked AS q
          LEFT JOIN ranked AS r ON r.place = q.place AND r.standing = 1
    )
    SELECT j.place::integer, CASE WHEN j.why IS NULL THEN j.extra END, j.part, coalesce(j.heads, 0), j.lead,
           j.nearest, j.why
      FROM judged AS j
     ORDER BY j.place;
END
$body$
$many$, $zero$
CREATE OR REPLACE FUNCTION pgembed.zero_shot(
    relation regclass,
    vector_column name,
    labels text[],
    vectors @type@[],
    min_share double precision DEFAULT NULL,
    min_margin double precision DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL
)
RETURNS TABLE (key jsonb, label text, share double precision, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
    names text[];
    prototypes @extschema:vector@.vector[];
BEGIN
    IF cardinality(labels) IS DISTINCT FROM cardinality(vectors) OR array_position(labels, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'there are % labels and % vectors, there must be a label for each vector',
            coalesce(cardinality(labels), 0), coalesce(cardinality(vectors), 0)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (temperature > 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'the temperature is %, it must be above 0', coalesce(temperature::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT array_agg(m.name ORDER BY m.name), array_agg(m.mean ORDER BY m.name)
      INTO names, prototypes
      FROM (SELECT u.name, @extschema:vector@.avg(CASE target.metric
                       WHEN 'cosine' THEN @extschema:vector@.l2_normalize(u.vector::@extschema:vector@.vector)
                       ELSE u.vector::@extschema:vector@.vector END) AS mean
              FROM unnest(labels, vectors) AS u (name, vector)
             GROUP BY u.name) AS m;
    RETURN QUERY EXECUTE format(
        'SELECT jsonb_build_object(%s), n.* FROM %s AS t CROSS JOIN LATERAL pgembed.nearest_label('
        't.%I::@extschema:vector@.vector, $1, $2, $3, $4, $5, $6, $7) AS n ORDER BY %s',
        (SELECT string_agg(format('%L, t.%I', name, name), ', ') FROM unnest(target.keys) AS name),
        relation,
        vector_column,
        (SELECT string_agg(format('t.%I', name), ', ') FROM unnest(target.keys) AS name)
    ) USING names, prototypes, target.metric, temperature, min_share, min_margin, max_distance;
END
$body$
$zero$, $centroid$
CREATE OR REPLACE FUNCTION pgembed.centroid_classify(
    relation regclass,
    vector_column name,
    label_column name,
    queries @type@[],
    min_share double precision DEFAULT NULL,
    min_margin double precision DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL
)
RETURNS TABLE (query integer, label text, share double precision, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
    names text[];
    prototypes @extschema:vector@.vector[];
BEGIN
    IF label_column IS NULL THEN
        RAISE EXCEPTION 'the label column is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF (temperature > 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'the temperature is %, it must be above 0', coalesce(temperature::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format(
        'SELECT array_agg(m.name ORDER BY m.name), array_agg(m.mean ORDER BY m.name) FROM ('
        'SELECT t.%1$I::pg_catalog.text AS name, @extschema:vector@.avg(CASE $1 WHEN ''cosine'' THEN '
        '@extschema:vector@.l2_normalize(t.%2$I::@extschema:vector@.vector) '
        'ELSE t.%2$I::@extschema:vector@.vector END) AS mean FROM %3$s AS t '
        'WHERE t.%1$I IS NOT NULL AND t.%2$I IS NOT NULL GROUP BY 1) AS m',
        label_column,
        vector_column,
        relation
    ) INTO names, prototypes USING target.metric;
    RETURN QUERY
    SELECT q.place::integer, n.*
      FROM unnest(queries) WITH ORDINALITY AS q (vector, place)
     CROSS JOIN LATERAL pgembed.nearest_label(q.vector::@extschema:vector@.vector, names, prototypes, target.metric,
                                              temperature, min_share, min_margin, max_distance) AS n
     ORDER BY q.place;
END
$body$
$centroid$] LOOP
            EXECUTE replace(definition, '@type@', accepted);
        END LOOP;
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.knn_classify_many(regclass, name, name, %s[], integer, text, float8, float8, '
            'float8, integer, float8, text, boolean) IS %L',
            accepted,
            'a label for each query from its k nearest labelled rows, or the reason for having none');
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.zero_shot(regclass, name, text[], %s[], float8, float8, float8, float8, text) '
            'IS %L',
            accepted,
            'a label for each row of a table: the one whose vectors have the nearest mean');
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.centroid_classify(regclass, name, name, %s[], float8, float8, float8, float8, '
            'text) IS %L',
            accepted,
            'a label for each query: the one whose rows have the nearest mean');
    END LOOP;
END
$do$;
