-- Labels by vectors that stand for them, as in pgembed/queries/classification/prototypes.py.

-- The label whose vector is nearest, of equal ones the first: shares are of exp(-distance / temperature).
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
    SELECT p.label, p.place, CASE metric
               WHEN 'cosine' THEN query OPERATOR(@extschema:vector@.<=>) p.vector
               WHEN 'l2' THEN query OPERATOR(@extschema:vector@.<->) p.vector
               WHEN 'l1' THEN query OPERATOR(@extschema:vector@.<+>) p.vector
               ELSE query OPERATOR(@extschema:vector@.<#>) p.vector
           END AS distance
      FROM unnest(labels, prototypes) WITH ORDINALITY AS p (label, vector, place)
), weighed AS (
    SELECT c.label, c.place, c.distance,
           exp(greatest((min(c.distance) OVER () - c.distance) / temperature, @LEAST_EXPONENT@)) AS weight
      FROM compared AS c
     WHERE c.distance < 'NaN'
), ranked AS (
    SELECT w.label, w.distance, w.weight / sum(w.weight) OVER () AS share,
           (w.weight - coalesce(lead(w.weight) OVER best_first, 0)) / sum(w.weight) OVER () AS margin,
           row_number() OVER best_first AS place
      FROM weighed AS w
    WINDOW best_first AS (ORDER BY w.weight DESC, w.distance, w.place)
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

-- The labels of vectors, of the rows that have these keys, or of all rows: of each label the mean of its rows is
-- compared (by_rows), or of the vectors that are given for it, or both, mixed.
CREATE OR REPLACE FUNCTION pgembed.nearest_labels(
    relation regclass,
    vector_column name,
    by_rows boolean,
    label_column name,
    vectors @extschema:vector@.vector[],
    keys jsonb[],
    names text[],
    of_names @extschema:vector@.vector[],
    mix double precision,
    min_share double precision,
    min_margin double precision,
    max_distance double precision,
    temperature double precision,
    metric text
)
RETURNS TABLE (place bigint, key jsonb, label text, share double precision, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
    means text := 'SELECT NULL::text AS label, NULL::@extschema:vector@.vector AS vector WHERE false';
    unit text := CASE target.metric WHEN 'cosine' THEN '@extschema:vector@.l2_normalize(' ELSE '(' END;
    mean text := ' AS label, @extschema:vector@.avg(' || unit;
    size integer[] := ARRAY[coalesce(@extschema:vector@.vector_dims(of_names[1]), 1)];
    labels text[];
    prototypes @extschema:vector@.vector[];
BEGIN
    PERFORM pgembed.check_limits(min_share, min_margin, max_distance, temperature);
    IF cardinality(names) IS DISTINCT FROM cardinality(of_names) OR array_position(names, NULL) IS NOT NULL
       OR array_position(of_names, NULL) IS NOT NULL OR NOT by_rows AND coalesce(cardinality(names), 0) = 0 THEN
        RAISE EXCEPTION 'there are % labels and % vectors, there must be a label for each vector, and no NULL',
            coalesce(cardinality(names), 0), coalesce(cardinality(of_names), 0)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (mix BETWEEN 0 AND 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'mix is %, it must be from 0 to 1', coalesce(mix::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF by_rows THEN
        IF pgembed.label_kind(relation, label_column, false) = 'array' THEN
            RAISE EXCEPTION 'the labels are arrays, whose elements would need a mean of each'
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Use pgembed.knn_classify_many.';
        END IF;
        means := format('SELECT t.%I', label_column) || mean || format('t.%I', vector_column)
                 || format('::%s)) AS vector FROM %s AS t WHERE t.%I IS NOT NULL AND t.%I IS NOT NULL GROUP BY 1',
                           $type$@extschema:vector@.vector$type$, relation, label_column, vector_column);
    END IF;
    EXECUTE 'SELECT array_agg(p.label::text ORDER BY p.label), array_agg(p.vector ORDER BY p.label) '
            'FROM (SELECT coalesce(m.label, n.label) AS label, CASE WHEN n.vector IS NULL THEN m.vector '
            'WHEN m.vector IS NULL THEN n.vector ELSE '
            || '(' || unit || 'm.vector) OPERATOR(@extschema:vector@.*) $4) OPERATOR(@extschema:vector@.+) ('
            || unit || 'n.vector) OPERATOR(@extschema:vector@.*) $3) END AS vector FROM ('
            || means || ') AS m FULL JOIN (SELECT u.name::' || coalesce(pgembed.label_type(relation, label_column), 'text')
            || mean || 'u.vector)) AS vector FROM unnest($1, $2) AS u (name, vector) GROUP BY 1) AS n '
            'ON n.label = m.label) AS p'
        INTO labels, prototypes USING names, of_names, array_fill(mix::real, size)::@extschema:vector@.vector,
              array_fill((1 - mix)::real, size)::@extschema:vector@.vector;
    RETURN QUERY EXECUTE
        'SELECT a.n, a.also, l.* FROM ('
        || CASE WHEN vectors IS NOT NULL OR keys IS NOT NULL THEN pgembed.asked_query(relation, vector_column, keys)
                ELSE (SELECT format('SELECT row_number() OVER (ORDER BY %s) AS n, t.%I AS vector, '
                                    'jsonb_build_object(%s) AS also FROM %s AS t',
                                    string_agg(format('t.%I', name), ', '), vector_column,
                                    string_agg(format('%1$L, t.%1$I', name), ', '), relation)
                        FROM unnest(target.keys) AS name) END
        || ') AS a CROSS JOIN LATERAL pgembed.nearest_label(a.vector::@extschema:vector@.vector, $3, $4, $5, $6, $7, $8, $9) '
           'AS l ORDER BY a.n'
        USING vectors, keys, labels, prototypes, target.metric, temperature, min_share, min_margin, max_distance;
END
$$;

DO $do$
DECLARE
    accepted text;
    limits text := 'float8, float8, float8, float8, text';
    definition text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$,
                                    'text', 'jsonb'] LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS pgembed.zero_shot(regclass, name, text[], %1$s[], %2$s), '
                       'pgembed.centroid_classify(regclass, name, name, %1$s[], %2$s)', accepted, limits);
        definition := replace($centroid$
CREATE OR REPLACE FUNCTION pgembed.centroid_classify(
    relation regclass,
    vector_column name,
    label_column name,
    queries @type@[],
    min_share double precision DEFAULT NULL,
    min_margin double precision DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL,
    labels text[] DEFAULT NULL,
    vectors @extschema:vector@.vector[] DEFAULT NULL,
    mix double precision DEFAULT 0.5
)
RETURNS TABLE (@query@, label text, share double precision, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
SELECT @named@, n.label, n.share, n.margin, n.nearest_distance, n.reason
  FROM pgembed.nearest_labels(relation, vector_column, true, label_column, @asked@, labels, vectors,
                              mix, min_share, min_margin, max_distance, temperature, metric) AS n
 ORDER BY n.place
$body$
$centroid$, '@type@', accepted);
        EXECUTE replace(replace(replace(definition,
            '@query@', CASE accepted WHEN 'jsonb' THEN 'key jsonb' ELSE 'query integer' END),
            '@named@', CASE accepted WHEN 'jsonb' THEN 'n.key' ELSE 'n.place::integer' END),
            '@asked@', CASE accepted WHEN 'jsonb' THEN 'NULL, coalesce(queries, ''{}'')'
                                     ELSE 'coalesce(queries::@extschema:vector@.vector[], ''{}''), NULL' END);
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.centroid_classify(regclass, name, name, %s[], %s, text[], %s[], float8) IS %L',
            accepted, limits, $type$@extschema:vector@.vector$type$,
            'a label for each query, a vector or the key of a row: the one whose rows have the nearest mean');
        CONTINUE WHEN accepted = 'jsonb';
        EXECUTE replace($zero$
CREATE OR REPLACE FUNCTION pgembed.zero_shot(
    relation regclass,
    vector_column name,
    labels text[],
    vectors @type@[],
    min_share double precision DEFAULT NULL,
    min_margin double precision DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL,
    keys jsonb[] DEFAULT NULL
)
RETURNS TABLE (key jsonb, label text, share double precision, margin double precision,
               nearest_distance double precision, reason text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
SELECT n.key, n.label, n.share, n.margin, n.nearest_distance, n.reason
  FROM pgembed.nearest_labels(relation, vector_column, false, NULL, NULL, keys, labels,
                              vectors::@extschema:vector@.vector[], 0, min_share, min_margin, max_distance,
                              temperature, metric) AS n
 ORDER BY n.place
$body$
$zero$, '@type@', accepted);
        EXECUTE format('COMMENT ON FUNCTION pgembed.zero_shot(regclass, name, text[], %s[], %s, jsonb[]) IS %L',
                       accepted, limits,
                       'a label for each row of a table, or of these keys: the one whose vectors have the nearest mean');
    END LOOP;
END
$do$;
