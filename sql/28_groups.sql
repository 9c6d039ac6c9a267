-- The best rows of each group, and how many rows of a search each value of a column has, as in
-- pgembed/queries/search/groups.py and counts.py.
CREATE OR REPLACE FUNCTION pgembed.best_rows(
    relation regclass,
    vector_column name,
    value text,        -- what is equal in a group, as SQL over the row t
    value_column name, -- its column, where that can be NULL
    query @extschema:vector@.vector,
    k integer,
    best integer,
    max_distance double precision,
    metric text,
    exact boolean
)
RETURNS TABLE (key jsonb, distance double precision, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked record := pgembed.valued_rows(relation, vector_column, metric, value);
    wanted bigint;
    candidates bigint; -- NULL: all rows
    complete boolean;
    keys jsonb[];
    distances double precision[];
    farthest double precision;
    groups bigint;
BEGIN
    PERFORM pgembed.check_query(relation, vector_column, asked.dimensions, asked.metric, query, k);
    IF best IS NULL OR best < 1 THEN
        RAISE EXCEPTION 'best is %, it must be at least 1', coalesce(best::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    wanted := greatest(@CANDIDATES_PER_ROW@ * k::bigint * best, @CANDIDATES_FLOOR@);
    candidates := CASE WHEN exact IS FALSE AND asked.method IS NOT NULL THEN wanted END;
    LOOP
        keys := NULL;
        distances := NULL;
        IF candidates IS NOT NULL THEN
            SELECT array_agg(n.key), array_agg(n.distance), max(n.distance)
              INTO keys, distances, farthest
              FROM pgembed.nearest(relation, vector_column, query, candidates::integer,
                                   asked.metric, false, value_column) AS n;
        END IF;
        complete := candidates IS NULL OR cardinality(keys) IS DISTINCT FROM candidates
                    OR (farthest > max_distance) IS TRUE;
        -- Of groups that candidates may hold a part of, the rest is looked up.
        EXECUTE format(
            $query$
            WITH ranked AS MATERIALIZED (
                SELECT *, row_number() OVER (PARTITION BY value ORDER BY distance, %1$s) AS place
                  FROM (%2$s OFFSET 0) AS r
                 WHERE distance < 'NaN' AND (distance <= $4) IS NOT FALSE AND value IS NOT NULL
            ), page AS MATERIALIZED (
                SELECT value AS of_group, row_number() OVER (ORDER BY distance, %1$s) AS group_rank
                  FROM ranked WHERE place = 1
                 ORDER BY group_rank LIMIT $5
            ), short AS MATERIALIZED (
                SELECT value FROM ranked
                 WHERE NOT $7 AND value IN (SELECT of_group FROM page)
                 GROUP BY value HAVING count(*) < $6
            ), looked_up AS (
                SELECT *, row_number() OVER (PARTITION BY value ORDER BY distance, %1$s) AS place
                  FROM (SELECT * FROM (%3$s) AS r
                         WHERE EXISTS (SELECT FROM short) AND value IN (SELECT value FROM short) OFFSET 0) AS r
                 WHERE distance < 'NaN' AND (distance <= $4) IS NOT FALSE
            ), best AS (
                SELECT r.*, p.group_rank
                  FROM (SELECT * FROM ranked WHERE value NOT IN (SELECT value FROM short)
                        UNION ALL SELECT * FROM looked_up) AS r
                  JOIN page AS p ON p.of_group = r.value
                 WHERE r.place <= $6
            )
            SELECT array_agg(%4$s ORDER BY group_rank, place), array_agg(distance ORDER BY group_rank, place),
                   coalesce(max(group_rank), 0)
              FROM best
            $query$,
            asked.key_columns, CASE WHEN candidates IS NULL THEN asked.whole ELSE asked.near END, asked.whole,
            asked.key
        ) INTO keys, distances, groups
        USING query, keys, distances, max_distance, k, best, complete;
        EXIT WHEN complete OR groups >= k;
        candidates := CASE WHEN candidates = wanted THEN wanted * @GROUPS_WIDER@ END;
    END LOOP;
    RETURN QUERY
    SELECT u.key, u.distance, pgembed.score(asked.metric, u.distance)
      FROM unnest(keys, distances) WITH ORDINALITY AS u (key, distance, place)
     ORDER BY u.place;
END
$$;

DO $do$
DECLARE
    accepted text;
    definition text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        FOREACH definition IN ARRAY ARRAY[$groups$
CREATE OR REPLACE FUNCTION pgembed.search_per(
    relation regclass,
    vector_column name,
    per name,
    query @type@,
    k integer DEFAULT 10,
    best integer DEFAULT 1,
    max_distance double precision DEFAULT NULL,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision, score double precision)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
SELECT b.key, b.distance, b.score
  FROM pgembed.best_rows(relation, vector_column, pgembed.column_value(relation, per), per,
                         query::@extschema:vector@.vector, k, best, max_distance, metric, exact)
  WITH ORDINALITY AS b (key, distance, score, place)
 ORDER BY b.place
$body$
$groups$, $facets$
CREATE OR REPLACE FUNCTION pgembed.facets(
    relation regclass,
    vector_column name,
    by_column name,
    query @type@,
    k integer DEFAULT 10,
    max_distance double precision DEFAULT NULL,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (value text, count bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    asked record := pgembed.valued_rows(relation, vector_column, metric, pgembed.column_value(relation, by_column));
    keys jsonb[];
    distances double precision[];
BEGIN
    SELECT array_agg(s.key), array_agg(s.distance)
      INTO keys, distances
      FROM pgembed.search(relation, vector_column, query, k, max_distance, asked.metric, exact) AS s;
    RETURN QUERY EXECUTE format(
        'SELECT value::text, count(*) FROM (%s) AS r GROUP BY value ORDER BY count(*) DESC, r.value', asked.near
    ) USING query::@extschema:vector@.vector, keys, distances;
END
$body$
$facets$] LOOP
            EXECUTE replace(definition, '@type@', accepted);
        END LOOP;
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.search_per(regclass, name, name, %s, integer, integer, float8, text, boolean) IS %L',
            accepted,
            'the best rows of each of the k nearest groups, the nearest group first: primary key, distance, score');
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.facets(regclass, name, name, %s, integer, float8, text, boolean) IS %L',
            accepted,
            'how many of the k nearest rows have each value of a column, the most frequent first');
    END LOOP;
END
$do$;
