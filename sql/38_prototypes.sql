-- Labels by vectors that stand for them, as in pgembed/queries/classification/prototypes.py.

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
        FOREACH definition IN ARRAY ARRAY[$zero$
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
    END IF;
    PERFORM pgembed.check_limits(min_share, min_margin, max_distance, temperature);
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
    END IF;
    PERFORM pgembed.check_limits(min_share, min_margin, max_distance, temperature);
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
