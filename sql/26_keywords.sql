-- The rows that match a question best by its words: BM25, as pgembed/queries/words/bm25.py computes it, from the
-- generated column and the table of statistics that the registration of the embedding names (words=).
CREATE OR REPLACE FUNCTION pgembed.keyword_search(
    relation regclass,
    vector_column name,
    query text,
    k integer DEFAULT 10
)
RETURNS TABLE (key jsonb, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column);
    words jsonb;
    statistics regclass;
    question record;
    wanted tsquery;
    keys jsonb[];
    scores double precision[];
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'the number of rows is %, it must be at least 1', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT r.facts -> 'words' INTO words
      FROM pg_index AS i
      JOIN pg_description AS d
        ON d.objoid = i.indexrelid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass
     CROSS JOIN LATERAL pgembed.read_registration(d.description) AS r
     WHERE i.indrelid = relation AND i.indpred IS NOT NULL AND r.facts ->> 'column' = vector_column
       AND pgembed.distrust(relation) IS NULL
     ORDER BY i.indexrelid
     LIMIT 1;
    statistics := pgembed.word_statistics(relation, words);
    IF statistics IS NULL THEN
        RAISE EXCEPTION 'column % of table % has no words', quote_ident(vector_column), relation
            USING ERRCODE = 'undefined_object',
                  HINT = 'Declare them with embedding_column(..., words=Words(...)).';
    END IF;

    EXECUTE format(
        $query$
        WITH RECURSIVE corpus AS MATERIALIZED (
            SELECT s.known, s.mean, coalesce(s.known, (SELECT count(*) FROM %1$s)) AS rows
              FROM (SELECT (SELECT rows FROM %2$s WHERE lexeme = '') AS known,
                           (SELECT mean_length FROM %2$s WHERE lexeme = '') AS mean) AS s
        ), counted AS (
            SELECT array_to_tsvector(ARRAY[r.lexeme])::text AS quoted, cardinality(r.positions) AS times,
                   greatest(CASE WHEN c.known IS NULL
                                 THEN (SELECT count(*) FROM %1$s AS t
                                        WHERE t.%3$I @@ array_to_tsvector(ARRAY[r.lexeme])::text::tsquery)
                                 ELSE coalesce(s.rows, 1) END, 1)::float8 AS n,
                   c.rows
              FROM corpus AS c
             CROSS JOIN unnest(to_tsvector(%4$L::regconfig, translate($1, %5$L, repeat(' ', length(%5$L))))) AS r
              LEFT JOIN %2$s AS s ON s.lexeme = r.lexeme
        ), asked AS MATERIALIZED (
            SELECT quoted, times, n, greatest(rows, n) AS rows, row_number() OVER (ORDER BY n, quoted) AS place
              FROM counted
        ), sets AS (
            SELECT quoted AS said, n, 'Infinity'::float8 AS wider, place, 1 AS size FROM asked
             UNION ALL
            SELECT s.said || ' & ' || a.quoted, s.n * a.n / a.rows, s.n, a.place, s.size + 1
              FROM sets AS s
              JOIN asked AS a
                ON a.place > s.place
               AND a.place <= CASE s.size WHEN 1 THEN @WORDS_PAIRED@ WHEN 2 THEN @WORDS_TRIPLED@
                                   ELSE least(s.size + 1, @WORDS_TRIPLED@) END
        ), running AS (
            SELECT said, n, wider, sum(n) OVER (ORDER BY n) AS so_far, min(n) OVER () AS least FROM sets
        ), graded AS MATERIALIZED (
            SELECT said, n, wider,
                   max(n) FILTER (WHERE so_far <= greatest($2 * @WORDS_PER_ROW@::float8, @WORDS_CANDIDATES@)
                                     OR n = least OR rows <= @WORDS_CANDIDATES@) OVER () AS most
              FROM running
             CROSS JOIN (SELECT max(rows) AS rows FROM asked) AS whole
        )
        SELECT array_agg(quoted::tsquery) AS queries,
               array_agg(times * ln(1 + (rows - n + 0.5::float8) / (n + 0.5::float8))) AS weights,
               (SELECT string_agg(g.said, ' | ')::tsquery FROM graded AS g WHERE g.n <= g.most AND g.most < g.wider)
                   AS rare,
               string_agg(quoted, ' | ')::tsquery AS every,
               (SELECT greatest(coalesce(c.mean, (
                           SELECT avg(coalesce((SELECT sum(cardinality(e.positions)) FROM unnest(f.words) AS e), 0))
                             FROM (SELECT %3$I AS words FROM %1$s ORDER BY %6$s LIMIT @WORDS_SAMPLE@) AS f
                       )::float8), 1) FROM corpus AS c) AS mean_length
          FROM asked
        $query$,
        relation, statistics, words ->> 'column', words ->> 'config', '@WORD_SEPARATORS@',
        (SELECT string_agg(quote_ident(name), ', ') FROM unnest(target.keys) AS name)
    ) INTO question USING left(query, @QUESTION@), k;
    IF question.every IS NULL THEN
        RETURN;
    END IF;

    wanted := question.rare;
    LOOP
        EXECUTE format(
            $query$
            SELECT array_agg(h.key ORDER BY h.place), array_agg(h.score ORDER BY h.place)
              FROM (SELECT jsonb_build_object(%1$s) AS key, s.score,
                           row_number() OVER (ORDER BY s.score DESC, %2$s) AS place
                      FROM (SELECT %2$s, (
                                SELECT sum(l.weight / (1 + m.norm / nullif(
                                           round(6 / pi() ^ 2 / (1 - ts_rank('{1,1,1,1}', m.words, l.query)) - 0.5),
                                           0)))
                                  FROM unnest($1, $2) AS l (query, weight)) AS score
                              FROM (SELECT %3$s, t.%4$I AS words,
                                           $5 * (1 - $6) + $5 * $6 * round(
                                               ts_rank(t.%4$I, $3)::float8 / nullif(ts_rank(t.%4$I, $3, 2), 0)
                                           ) / $7 AS norm
                                      FROM %5$s AS t
                                     WHERE t.%4$I @@ $4 OFFSET 0) AS m
                             ORDER BY score DESC, %2$s
                             LIMIT $8) AS s) AS h
            $query$,
            (SELECT string_agg(format('%L, k%s', name, place), ', ')
               FROM unnest(target.keys) WITH ORDINALITY AS named (name, place)),
            (SELECT string_agg(format('k%s', place), ', ')
               FROM unnest(target.keys) WITH ORDINALITY AS named (name, place)),
            (SELECT string_agg(format('t.%I AS k%s', name, place), ', ')
               FROM unnest(target.keys) WITH ORDINALITY AS named (name, place)),
            words ->> 'column',
            relation
        ) INTO keys, scores
        USING question.queries, question.weights, question.every, wanted, (words -> 'k1')::float8,
              (words -> 'b')::float8, question.mean_length, k;
        EXIT WHEN cardinality(keys) >= k OR wanted = question.every;
        wanted := question.every;
    END LOOP;
    RETURN QUERY SELECT u.key, u.score FROM unnest(keys, scores) AS u (key, score);
END
$$;
COMMENT ON FUNCTION pgembed.keyword_search IS
    'the k rows that match the words of the query best, by BM25, best first: primary key, score';

-- Nearest by vector and best by words, fused by their ranks (reciprocal rank fusion).
CREATE OR REPLACE FUNCTION pgembed.hybrid_search(
    relation regclass,
    vector_column name,
    terms text,
    query @extschema:vector@.vector,
    k integer DEFAULT 10,
    candidates integer DEFAULT NULL
)
RETURNS TABLE (key jsonb, score double precision, vector_rank bigint, text_rank bigint,
               vector_score double precision, text_score double precision)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
WITH wanted AS (
    SELECT coalesce(candidates, greatest(@CANDIDATES_PER_ROW@ * k, @CANDIDATES_FLOOR@)) AS rows
), near AS MATERIALIZED (
    SELECT n.key, n.score, n.rank
      FROM wanted AS w
     CROSS JOIN LATERAL pgembed.search(relation, vector_column, query, w.rows)
           WITH ORDINALITY AS n (key, distance, score, rank)
), match AS MATERIALIZED (
    SELECT m.key, m.score, m.rank
      FROM wanted AS w
     CROSS JOIN LATERAL pgembed.keyword_search(relation, vector_column, terms, w.rows)
           WITH ORDINALITY AS m (key, score, rank)
)
SELECT coalesce(near.key, match.key),
       coalesce(1 / (60.0::float8 + near.rank), 0) + coalesce(1 / (60.0::float8 + match.rank), 0),
       near.rank, match.rank, near.score, match.score
  FROM near FULL JOIN match ON near.key = match.key
 ORDER BY 2 DESC, 1
 LIMIT k
$$;
COMMENT ON FUNCTION pgembed.hybrid_search IS
    'the k rows that are best by vector and by words, fused by their ranks: key, score, both ranks and scores';
