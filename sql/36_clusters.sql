-- Communities as sentence-transformers' community_detection defines them: of each center the rows that are near it,
-- the largest first, without those that a larger one has taken, if enough are left. The pairs come sorted by the
-- size of the center's community, greatest first, then by the center, and hold each row with itself. Returned is
-- the center of each row, NULL for those of no community.
CREATE OR REPLACE FUNCTION pgembed.communities(centers integer[], members integer[], min_size integer)
RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    center_of integer[] := array_fill(NULL::integer, ARRAY[(SELECT coalesce(max(n), 0) FROM unnest(members) AS n)]);
    pairs integer := coalesce(cardinality(centers), 0);
    start integer := 1;
    stop integer;
    free integer;
BEGIN
    WHILE start <= pairs LOOP
        stop := start;
        free := 0;
        WHILE stop <= pairs AND centers[stop] = centers[start] LOOP
            IF center_of[members[stop]] IS NULL THEN
                free := free + 1;
            END IF;
            stop := stop + 1;
        END LOOP;
        IF free >= min_size THEN
            FOR i IN start .. stop - 1 LOOP
                IF center_of[members[i]] IS NULL THEN
                    center_of[members[i]] := centers[start];
                END IF;
            END LOOP;
        END IF;
        start := stop;
    END LOOP;
    RETURN center_of;
END
$$;

-- The rows of a table in communities: clusters are numbered by size. The same as pgembed/queries/duplicates/clusters.py.
CREATE OR REPLACE FUNCTION pgembed.cluster(
    relation regclass,
    vector_column name,
    min_score double precision,
    min_size integer DEFAULT 10,
    metric text DEFAULT NULL,
    k integer DEFAULT 10,
    exact boolean DEFAULT false
)
RETURNS TABLE (cluster bigint, key jsonb, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    pairs record := pgembed.pairs_query(relation, vector_column, min_score, metric, k, exact);
    before jsonb;
BEGIN
    IF min_size IS NULL OR min_size < 1 THEN
        RAISE EXCEPTION 'min_size is %, it must be at least 1', coalesce(min_size::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    before := pgembed.ask_for(pairs.method, pairs.lists, pairs.oversample, k);
    RETURN QUERY EXECUTE format(
        $query$
        WITH %s, every AS MATERIALIZED (
            SELECT l.n AS a, r.n AS b, p.distance
              FROM pairs AS p JOIN copies AS l ON l.first = p.a JOIN copies AS r ON r.first = p.b
            UNION ALL
            SELECT r.n, l.n, p.distance
              FROM pairs AS p JOIN copies AS l ON l.first = p.a JOIN copies AS r ON r.first = p.b
            UNION ALL
            SELECT one.n, other.n, one.own
              FROM copies AS one JOIN copies AS other ON other.first = one.first WHERE one.own <= $1
        ), sized AS (
            SELECT e.*, count(*) OVER (PARTITION BY e.a) AS size FROM every AS e
        ), found AS MATERIALIZED (
            SELECT n::integer, center
              FROM (SELECT pgembed.communities(array_agg(a ORDER BY size DESC, a), array_agg(b ORDER BY size DESC, a), $3)
                           AS centers FROM sized WHERE size >= $3) AS c
             CROSS JOIN LATERAL unnest(c.centers) WITH ORDINALITY AS u (center, n)
             WHERE center IS NOT NULL
        ), numbered_clusters AS (
            SELECT center, row_number() OVER (ORDER BY count(*) DESC, center) AS cluster FROM found GROUP BY center
        )
        SELECT c.cluster, m.key, pgembed.score($2, e.distance)
          FROM found AS f
          JOIN numbered_clusters AS c ON c.center = f.center
          JOIN every AS e ON e.a = f.center AND e.b = f.n
          JOIN numbered AS m ON m.n = f.n
         ORDER BY c.cluster, e.distance, f.n
        $query$,
        pairs.query)
        USING pgembed.distance(pairs.metric, min_score), pairs.metric, min_size;
    PERFORM pgembed.put_back(before);
END
$$;
COMMENT ON FUNCTION pgembed.cluster IS
    'rows in communities around a center, the largest first, each row with its score to the center';
