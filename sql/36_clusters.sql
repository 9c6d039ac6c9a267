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

-- What stored clusters are about: lexemes by class-based tf-idf, and the keys of the rows nearest to the mean.
CREATE OR REPLACE FUNCTION pgembed.topics(
    relation regclass,
    vector_column name,
    text_column name,
    clusters regclass, -- with the columns cluster, and key as pgembed.cluster gives it
    words integer DEFAULT 10,
    rows integer DEFAULT 3,
    config regconfig DEFAULT 'pg_catalog.english',
    metric text DEFAULT NULL
)
RETURNS TABLE (cluster text, size bigint, top_words text[], keys jsonb[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
BEGIN
    IF words IS NULL OR words < 1 OR rows IS NULL OR rows < 1 THEN
        RAISE EXCEPTION 'words is %, rows is %, they must be at least 1', coalesce(words::text, 'NULL'),
            coalesce(rows::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF config IS NULL OR clusters IS NULL THEN
        RAISE EXCEPTION 'config and clusters must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF (SELECT count(*) FROM pg_attribute AS a
            WHERE a.attrelid = clusters AND (a.attname = 'cluster' OR a.attname = 'key' AND a.atttypid = 'jsonb'::regtype))
          <> 2 THEN
        RAISE EXCEPTION 'table % does not have the columns cluster, and key jsonb', clusters
            USING ERRCODE = 'undefined_column',
                  HINT = 'CREATE TABLE ... AS SELECT * FROM pgembed.cluster(...) has them.';
    END IF;
    RETURN QUERY EXECUTE (
        SELECT format(
                   $query$
                   WITH members AS MATERIALIZED (
                       SELECT g.cluster, row_number() OVER (ORDER BY %1$s) AS n, g.key, t.%2$I AS vector, %3$s::text AS text
                         FROM %4$s AS g JOIN %5$s AS t ON g.key = jsonb_build_object(%6$s)
                        WHERE g.cluster IS NOT NULL
                   ), counted AS MATERIALIZED (
                       SELECT m.cluster, u.lexeme, sum(cardinality(u.positions)) AS number
                         FROM members AS m
                        CROSS JOIN LATERAL unnest(to_tsvector($1, m.text)) AS u (lexeme, positions, weights)
                        GROUP BY m.cluster, u.lexeme
                   ), weighed AS (
                       SELECT c.cluster, c.lexeme,
                              c.number * ln(1 + a.mean / (sum(c.number) OVER (PARTITION BY c.lexeme))::float8) AS weight
                         FROM counted AS c
                        CROSS JOIN (SELECT sum(number)::float8 / count(DISTINCT cluster) AS mean FROM counted) AS a
                   ), placed AS (
                       SELECT *, row_number() OVER (PARTITION BY cluster ORDER BY weight DESC, lexeme) AS place
                         FROM weighed
                   ), outstanding AS (
                       SELECT cluster, array_agg(lexeme ORDER BY place) AS words
                         FROM placed WHERE place <= $2 GROUP BY cluster
                   ), centers AS (
                       SELECT cluster, %8$s(vector) AS vector, count(*) AS size FROM members GROUP BY cluster
                   ), central AS (
                       SELECT m.cluster, m.key, c.size,
                              row_number() OVER (PARTITION BY m.cluster ORDER BY m.vector %7$s c.vector, m.n) AS place
                         FROM members AS m JOIN centers AS c ON c.cluster = m.cluster
                   ), nearest AS (
                       SELECT cluster, size, array_agg(key ORDER BY place) AS keys
                         FROM central WHERE place <= $3 GROUP BY cluster, size
                   )
                   SELECT c.cluster::text, c.size, coalesce(o.words, '{}'), c.keys
                     FROM nearest AS c LEFT JOIN outstanding AS o ON o.cluster = c.cluster
                    ORDER BY c.cluster
                   $query$,
                   string_agg(format('t.%I', name), ', ' ORDER BY place), vector_column,
                   pgembed.column_value(relation, text_column), clusters, relation,
                   string_agg(format('%1$L, t.%1$I', name), ', '), target.op, $avg$@extschema:vector@.avg$avg$)
          FROM unnest(target.keys) WITH ORDINALITY AS named (name, place))
        USING config, words, rows;
END
$$;
COMMENT ON FUNCTION pgembed.topics IS
    'what clusters are about: the lexemes that stand out, and the keys of the rows nearest to their middle';
