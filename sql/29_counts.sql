-- How many rows there are: within a distance, and on all pages, as in pgembed/queries/search/counts.py and nearest.py.
-- Both compare all rows, without an index.
DO $do$
DECLARE
    accepted text;
    definition text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        FOREACH definition IN ARRAY ARRAY[$within$
CREATE OR REPLACE FUNCTION pgembed.count_within(
    relation regclass,
    vector_column name,
    query @type@,
    max_distance double precision,
    metric text DEFAULT NULL
)
RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
    rows bigint;
BEGIN
    PERFORM pgembed.check_query(relation, vector_column, target.dimensions, target.metric,
                                query::@extschema:vector@.vector, 1);
    IF max_distance IS NULL OR max_distance = 'NaN' THEN
        RAISE EXCEPTION 'max_distance is %, it must be a number', coalesce(max_distance::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('SELECT count(*) FROM %s AS t WHERE t.%I %s $1::%s <= $2',
                   relation, vector_column, target.op, target.storage)
       INTO rows USING query::@extschema:vector@.vector, max_distance;
    RETURN rows;
END
$body$
$within$, $page$
CREATE OR REPLACE FUNCTION pgembed.search_page(
    relation regclass,
    vector_column name,
    query @type@,
    k integer DEFAULT 10,
    skip integer DEFAULT 0,
    max_distance double precision DEFAULT NULL,
    metric text DEFAULT NULL
)
RETURNS TABLE (key jsonb, distance double precision, score double precision, total bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    asked record := pgembed.valued_rows(relation, vector_column, metric, 'NULL');
BEGIN
    PERFORM pgembed.check_query(relation, vector_column, asked.dimensions, asked.metric,
                                query::@extschema:vector@.vector, k);
    IF skip IS NULL OR skip < 0 THEN
        RAISE EXCEPTION 'skip is %, it must be at least 0', coalesce(skip::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY EXECUTE format(
        $query$
        SELECT %1$s, distance, pgembed.score($2, distance), total
          FROM (SELECT *, count(*) OVER () AS total
                  FROM (%2$s OFFSET 0) AS r
                 WHERE distance < 'NaN' AND (distance <= $3) IS NOT FALSE
                 ORDER BY distance, %3$s
                 LIMIT $4 OFFSET $5) AS s
         ORDER BY distance, %3$s
        $query$,
        asked.key, asked.whole, asked.key_columns
    ) USING query::@extschema:vector@.vector, asked.metric, max_distance, k, skip;
END
$body$
$page$] LOOP
            EXECUTE replace(definition, '@type@', accepted);
        END LOOP;
        EXECUTE format('COMMENT ON FUNCTION pgembed.count_within(regclass, name, %s, float8, text) IS %L', accepted,
                       'how many rows are within a distance of the query');
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.search_page(regclass, name, %s, integer, integer, float8, text) IS %L',
            accepted,
            'the k nearest rows after the first ones, and how many there are: primary key, distance, score, total');
    END LOOP;
END
$do$;
