-- The rows of one table that are nearest to each row of another, k of each.
CREATE OR REPLACE FUNCTION pgembed.nearest_of_each(
    asking regclass,
    asking_column name,
    relation regclass,
    vector_column name,
    k integer,
    metric text,
    exact boolean
)
RETURNS TABLE (asking_key jsonb, found_key jsonb, distance double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked record := pgembed.vector_column(asking, asking_column, metric);
BEGIN
    RETURN QUERY EXECUTE format(
        $query$
        SELECT a.key, n.key, n.distance
          FROM (SELECT jsonb_build_object(%1$s) AS key, t.%2$I AS vector
                  FROM %3$s AS t
                 WHERE (t.%2$I %4$s t.%2$I) < 'NaN') AS a
         CROSS JOIN LATERAL pgembed.nearest($1, $2, a.vector::%5$s, $3, $4, $5, NULL) AS n
        $query$,
        (SELECT string_agg(format('%1$L, t.%1$I', name), ', ' ORDER BY place)
           FROM unnest(asked.keys) WITH ORDINALITY AS named (name, place)),
        asking_column, asking, asked.op, $type$@extschema:vector@.vector$type$)
        USING relation, vector_column, k, asked.metric, exact;
END
$$;

-- Which row of one table is which of another: each is the best of the other (one_to_one), or the right one the best
-- of the left. margin is the score divided by the mean score of the k nearest of both rows. The same as
-- pgembed/queries/duplicates/matching.py.
CREATE OR REPLACE FUNCTION pgembed.match(
    relation regclass,
    vector_column name,
    other regclass,
    other_column name,
    min_score double precision DEFAULT NULL,
    margin double precision DEFAULT NULL,
    one_to_one boolean DEFAULT true,
    k integer DEFAULT 4,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (left_key jsonb, right_key jsonb, score double precision, margin_of_pair double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    chosen text := (pgembed.vector_column(relation, vector_column, metric)).metric;
    least_score double precision := min_score;
    least_margin double precision := margin;
    mutual boolean := one_to_one;
BEGIN
    IF min_score IS NOT NULL THEN
        PERFORM pgembed.check_score('min_score', min_score, chosen);
    END IF;
    IF margin IN ('NaN', 'Infinity', '-Infinity') THEN
        RAISE EXCEPTION 'margin is %, it must be a number', margin USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    WITH forward AS MATERIALIZED (
        SELECT n.asking_key AS a, n.found_key AS b, pgembed.score(chosen, n.distance) AS score
          FROM pgembed.nearest_of_each(relation, vector_column, other, other_column, k, chosen, exact) AS n
    ), backward AS MATERIALIZED (
        SELECT n.found_key AS a, n.asking_key AS b, pgembed.score(chosen, n.distance) AS score
          FROM pgembed.nearest_of_each(other, other_column, relation, vector_column, k, chosen, exact) AS n
    ), rated AS (
        SELECT p.a, p.b, p.score, p.score / nullif((l.mean + r.mean) / (1 + 1), 0) AS ratio
          FROM (SELECT a, b, max(score) AS score
                  FROM (SELECT * FROM forward UNION ALL SELECT * FROM backward) AS found GROUP BY a, b) AS p
          JOIN (SELECT a, avg(score) AS mean FROM forward GROUP BY a) AS l ON l.a = p.a
          JOIN (SELECT b, avg(score) AS mean FROM backward GROUP BY b) AS r ON r.b = p.b
    ), valued AS (
        SELECT v.*, CASE WHEN least_margin IS NULL THEN v.score ELSE v.ratio END AS value FROM rated AS v
    ), ranked AS (
        SELECT v.*, row_number() OVER (PARTITION BY v.a ORDER BY v.value DESC, v.b) AS best,
               row_number() OVER (PARTITION BY v.b ORDER BY v.value DESC, v.a) AS best_back
          FROM valued AS v
    )
    SELECT m.a, m.b, m.score, m.ratio
      FROM ranked AS m
     WHERE m.best = 1 AND (m.best_back = 1 OR NOT mutual)
       AND (m.score >= least_score) IS NOT FALSE AND (m.ratio >= least_margin) IS NOT FALSE
     ORDER BY m.value DESC, m.a, m.b;
END
$$;
COMMENT ON FUNCTION pgembed.match IS
    'the pairs of rows of two tables that are the best of each other, with their score and margin';

-- The best pairs of a table: those within the distance of the last of them among the k nearest neighbours of all
-- rows. Where all pairs are compared, all are ranked.
CREATE OR REPLACE FUNCTION pgembed.mine_pairs(
    relation regclass,
    vector_column name,
    pairs integer DEFAULT 10000,
    metric text DEFAULT NULL,
    k integer DEFAULT 10,
    exact boolean DEFAULT false
)
RETURNS TABLE (left_key jsonb, right_key jsonb, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen text := (pgembed.vector_column(relation, vector_column, metric)).metric;
    least double precision;
BEGIN
    IF pairs IS NULL OR pairs < 1 THEN
        RAISE EXCEPTION 'the number of pairs is %, it must be at least 1', coalesce(pairs::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT pgembed.score(chosen, found.distance) INTO least
      FROM (SELECT min(n.distance) AS distance
              FROM pgembed.nearest_of_each(relation, vector_column, relation, vector_column, k + 1, chosen, exact) AS n
             WHERE n.asking_key <> n.found_key
             GROUP BY least(n.asking_key, n.found_key), greatest(n.asking_key, n.found_key)) AS found
     ORDER BY found.distance
    OFFSET pairs - 1 LIMIT 1;
    -- Fewer pairs than that: no distance is too far.
    least := coalesce(least, CASE WHEN chosen = 'cosine' THEN -1 WHEN chosen IN ('l2', 'l1') THEN double precision '1e-300'
                                  ELSE double precision '-1e300' END);
    RETURN QUERY
    SELECT p.left_key, p.right_key, p.score
      FROM pgembed.near_duplicates(relation, vector_column, least, chosen, k, exact) AS p
     LIMIT pairs;
END
$$;
COMMENT ON FUNCTION pgembed.mine_pairs IS 'the pairs of rows that are most alike, best first';
