-- The rows that are dropped where of two near rows the second is dropped if the first is kept, as an array. The
-- pairs come as two arrays, sorted by the first row, which is the smaller number: when a pair's turn comes, all
-- pairs that could drop its first row have had theirs.
CREATE OR REPLACE FUNCTION pgembed.dropped(lefts integer[], rights integer[])
RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_dropped boolean[] := array_fill(false, ARRAY[(SELECT coalesce(max(n), 0) FROM unnest(rights) AS n)]);
BEGIN
    FOR i IN 1 .. coalesce(cardinality(lefts), 0) LOOP
        IF NOT is_dropped[lefts[i]] THEN
            is_dropped[rights[i]] := true;
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT n::integer FROM unnest(is_dropped) WITH ORDINALITY AS d (yes, n) WHERE yes ORDER BY n);
END
$$;

-- Which rows to keep so that no two of them are near: rows are gone through in the order of the column keep (the
-- greatest first where descending) and the key, and kept unless one that is kept before them is near. The same as
-- pgembed/queries/duplicates/keeping.py.
CREATE OR REPLACE FUNCTION pgembed.keep_list(
    relation regclass,
    vector_column name,
    min_score double precision,
    keep name DEFAULT NULL,
    descending boolean DEFAULT false,
    metric text DEFAULT NULL,
    k integer DEFAULT 10,
    exact boolean DEFAULT false,
    stored regclass DEFAULT NULL
)
RETURNS TABLE (key jsonb, is_kept boolean, kept_key jsonb, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first_key name := (pgembed.vector_column(relation, vector_column, metric)).keys[1];
    pairs record := pgembed.pairs_query(
        relation, vector_column, min_score, metric, k, exact, coalesce(keep, first_key), descending, stored);
    before jsonb;
BEGIN
    before := pgembed.ask_for(pairs.method, pairs.lists, pairs.oversample, k);
    RETURN QUERY EXECUTE format(
        $query$
        WITH %s, dropped AS MATERIALIZED (
            SELECT unnest(pgembed.dropped(array_agg(a ORDER BY a, b), array_agg(b ORDER BY a, b))) AS n FROM pairs
        ), near AS (
            -- A copy may come behind kept rows that are nearer than those before the first of its kind.
            SELECT c.n, p.kept, p.distance, row_number() OVER (PARTITION BY c.n ORDER BY p.distance, p.kept) AS place
              FROM (SELECT a AS kept, b AS first, distance FROM pairs
                    UNION ALL SELECT b, a, distance FROM pairs) AS p
              JOIN copies AS c ON c.first = p.first AND p.kept < c.n
             WHERE p.first IN (SELECT n FROM dropped) AND p.kept NOT IN (SELECT n FROM dropped)
        )
        SELECT m.key, kept.n IS NULL, kept.key,
               pgembed.score($2, CASE WHEN near.n IS NOT NULL THEN near.distance WHEN c.first <> c.n THEN c.own END)
          FROM numbered AS m
          JOIN copies AS c ON c.n = m.n
          LEFT JOIN near ON near.n = c.n AND near.place = 1
          LEFT JOIN numbered AS kept
                 ON kept.n = CASE WHEN near.n IS NOT NULL THEN near.kept WHEN c.first <> c.n THEN c.first END
         ORDER BY m.n
        $query$,
        pairs.query)
        USING pgembed.distance(pairs.metric, min_score), pairs.metric;
    PERFORM pgembed.put_back(before);
END
$$;
COMMENT ON FUNCTION pgembed.keep_list IS
    'which rows to keep so that no two of them are near: each dropped one names a kept one, and their score';

-- The rows that a text or a row would repeat; its vector is that of a document, not of a question.
CREATE OR REPLACE FUNCTION pgembed.duplicates_of(
    relation regclass,
    vector_column name,
    query @extschema:vector@.vector,
    min_score double precision,
    k integer DEFAULT 10,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision, score double precision)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT n.key, n.distance, n.score
  FROM pgembed.vector_column(relation, vector_column, metric) AS c
 CROSS JOIN LATERAL pgembed.check_score('min_score', min_score, c.metric)
 CROSS JOIN LATERAL pgembed.nearest(relation, vector_column, query, k, c.metric, exact, NULL)
    WITH ORDINALITY AS n (key, distance, score, extra, place)
 WHERE n.distance <= pgembed.distance(c.metric, min_score)
 ORDER BY n.place
$$;
COMMENT ON FUNCTION pgembed.duplicates_of IS
    'the k rows nearest to a vector with at least this score, nearest first';

-- The threshold that tells labelled pairs apart best: of the best F1, or of the most recall where that precision
-- is wished. It lies in the middle between two scores.
CREATE OR REPLACE FUNCTION pgembed.suggest_threshold(
    scores double precision[],
    duplicates boolean[],
    wished_precision double precision DEFAULT NULL,
    OUT min_score double precision,
    OUT "precision" double precision,
    OUT recall double precision,
    OUT f1 double precision
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
WITH labelled AS (
    SELECT s.score, count(*) AS pairs, count(*) FILTER (WHERE s.duplicate) AS hits
      FROM unnest(scores, duplicates) AS s (score, duplicate)
     WHERE s.score < 'Infinity' AND s.duplicate IS NOT NULL
     GROUP BY s.score
), counted AS (
    SELECT l.score, lead(l.score) OVER descending AS next,
           sum(l.hits) OVER descending::double precision AS hits, sum(l.pairs) OVER descending AS found,
           sum(l.hits) OVER () AS every
      FROM labelled AS l
    WINDOW descending AS (ORDER BY l.score DESC)
), rated AS (
    SELECT c.*, c.hits / c.found AS right_share, c.hits / nullif(c.every, 0) AS found_share,
           (c.hits + c.hits) / (c.found + c.every) AS mean
      FROM counted AS c
)
SELECT coalesce(r.score - (r.score - r.next) / 2, r.score), r.right_share, r.found_share, r.mean
  FROM rated AS r
 WHERE (r.right_share >= wished_precision) IS NOT FALSE
 ORDER BY CASE WHEN wished_precision IS NULL THEN r.mean ELSE r.found_share END DESC, r.score DESC
 LIMIT 1
$$;
COMMENT ON FUNCTION pgembed.suggest_threshold IS
    'the threshold of the best F1 for scores of labelled pairs, or of the most recall with at least a precision';
