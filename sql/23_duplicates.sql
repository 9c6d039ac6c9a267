-- A score, refused where pairs cannot have it.
CREATE OR REPLACE FUNCTION pgembed.check_score(argument text, score double precision, metric text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF score IS NULL OR score IN ('NaN', 'Infinity', '-Infinity')
       OR (metric = 'cosine' AND abs(score) > 1)
       OR (metric IN ('l2', 'l1') AND (score <= 0 OR score > 1)) THEN
        RAISE EXCEPTION '% is %, which is not a score of the metric %', argument, coalesce(score::text, 'NULL'), metric
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Scores are -1 to 1 for cosine, above 0 and up to 1 for l2 and l1, finite for inner_product.';
    END IF;
END
$$;

-- The rows of a table as common table expressions: numbered (n, key, k1, ..., vector) and copies (n, first, own),
-- firsts and blocks. A prefix tells those of two tables apart.
CREATE OR REPLACE FUNCTION pgembed.numbered_query(
    prefix text,
    relation regclass,
    vector text,    -- of a row t, as SQL; NULL where there are no copies to be found
    condition text, -- of a row t, as SQL
    op text,
    keys name[],
    ordering name DEFAULT NULL,
    descending boolean DEFAULT false
)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format(
           $query$
           %1$snumbered AS MATERIALIZED (
               SELECT row_number() OVER (ORDER BY %2$s%3$s)::integer AS n, jsonb_build_object(%4$s) AS key, %5$s,
                      %6$s AS vector
                 FROM %7$s AS t
                WHERE %8$s
           ), %1$scopies AS MATERIALIZED (
               SELECT n, own, CASE WHEN content IS NULL THEN n ELSE min(n) OVER (PARTITION BY content) END AS first
                 FROM (SELECT n, own, CASE WHEN own <= $1 THEN md5(array_send(vector::real[])) END AS content
                         FROM (SELECT n, vector, vector %9$s vector AS own FROM %1$snumbered) AS measured
                       OFFSET 0) AS hashed
           ), %1$sfirsts AS NOT MATERIALIZED (
               SELECT m.* FROM %1$snumbered AS m JOIN %1$scopies AS c ON c.n = m.n
                WHERE c.n = c.first AND m.vector IS NOT NULL
           ), %1$sblocks AS MATERIALIZED (
               SELECT n / @BLOCK@ AS block, array_agg(n) AS numbers, array_agg(vector) AS vectors
                 FROM %1$sfirsts GROUP BY n / @BLOCK@
           )
           $query$,
           prefix,
           coalesce('t.' || quote_ident(ordering) || CASE WHEN descending THEN ' DESC, ' ELSE ', ' END, ''),
           string_agg(format('t.%I', name), ', ' ORDER BY place),
           string_agg(format('%1$L, t.%1$I', name), ', ' ORDER BY place),
           string_agg(format('t.%I AS k%s', name, place), ', ' ORDER BY place),
           vector, relation, condition, op)
  FROM unnest(keys) WITH ORDINALITY AS named (name, place)
$$;

-- The query of all pairs of rows that are near each other: the common table expressions of pgembed.numbered_query
-- with, at their end, pairs (a, b, distance), where a < b are row numbers in the order of a column, if one is
-- named, and the key; or a is of one table and b of the other, whose rows are named other_numbered and so on.
-- Pairs are those of first rows, of which the others are copies: their vectors are equal, own is the distance of a
-- vector to itself. Its parameter $1 is the largest distance of a pair. Of stored pairs, all
-- rows are first rows.
-- The same plan as in pgembed/queries/duplicates/pairs.py: up to @EXACT_UP_TO@ rows, and without an index, all pairs are
-- compared, in blocks of @BLOCK@ vectors; else the index gives k neighbours of each row, or candidates for them,
-- and rows for which that may not be all are compared with all others. OFFSET 0 keeps blocks together until
-- they have met.
CREATE OR REPLACE FUNCTION pgembed.pairs_query(
    relation regclass,
    vector_column name,
    min_score double precision,
    wanted_metric text,
    k integer,
    exact boolean,
    ordering name DEFAULT NULL,
    descending boolean DEFAULT false,
    stored regclass DEFAULT NULL,
    other regclass DEFAULT NULL,
    other_column name DEFAULT NULL,
    OUT query text,
    OUT metric text,
    OUT method text, -- NULL where all pairs are compared
    OUT lists integer,
    OUT oversample integer
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    others record;
    across boolean := other IS NOT NULL;
    vector text;
    many boolean;
BEGIN
    target := pgembed.vector_column(relation, vector_column, wanted_metric);
    metric := target.metric;
    IF ordering IS NOT NULL THEN
        PERFORM pgembed.column_value(relation, ordering);
    END IF;
    PERFORM pgembed.check_score('min_score', min_score, metric);
    IF k IS NULL OR k NOT BETWEEN @NEIGHBOURS.least@ AND @NEIGHBOURS.most@ THEN
        RAISE EXCEPTION 'k is %, it must be @NEIGHBOURS.least@ to @NEIGHBOURS.most@ neighbours', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF across <> (other_column IS NOT NULL) THEN
        RAISE EXCEPTION 'the other table is %, its column %, there must be both', coalesce(other::text, 'NULL'),
            coalesce(quote_ident(other_column), 'NULL')
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF stored IS NOT NULL AND EXISTS (
              SELECT FROM (VALUES ('left_key', 'jsonb'), ('right_key', 'jsonb'), ('score', 'float8')) AS v (name, kind)
               WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = stored AND a.attname = v.name
                                                                 AND a.atttypid = v.kind::regtype)) THEN
        RAISE EXCEPTION 'table % does not have the columns left_key jsonb, right_key jsonb, score double precision', stored
            USING ERRCODE = 'undefined_column',
                  HINT = 'CREATE TABLE ... AS SELECT * FROM pgembed.near_duplicates(...) has them.';
    END IF;

    IF stored IS NULL THEN
        vector := format('t.%I', vector_column);
    END IF;
    query := pgembed.numbered_query(
        '', relation, coalesce(vector, 'NULL::' || target.storage),
        CASE WHEN ordering IS NULL THEN coalesce(vector || ' IS NOT NULL', 'true') ELSE 'true' END,
        target.op, target.keys, ordering, descending);
    IF stored IS NOT NULL THEN
        query := query || format(
            $query$
            , pairs AS MATERIALIZED (
                SELECT least(l.n, r.n) AS a, greatest(l.n, r.n) AS b, min(pgembed.distance(%L, p.score)) AS distance
                  FROM %s AS p JOIN numbered AS l ON l.key = p.left_key JOIN numbered AS r ON r.key = p.right_key
                 WHERE p.score >= %L AND l.n <> r.n
                 GROUP BY least(l.n, r.n), greatest(l.n, r.n)
            )
            $query$,
            metric, stored, min_score);
        RETURN;
    ELSIF across THEN
        others := pgembed.vector_column(other, other_column, metric);
        IF others.storage <> target.storage OR others.dimensions <> target.dimensions THEN
            RAISE EXCEPTION 'column % of table % is a %(%), column % of table % a %(%)',
                quote_ident(other_column), other, others.storage, others.dimensions,
                quote_ident(vector_column), relation, target.storage, target.dimensions
                USING ERRCODE = 'data_exception', HINT = 'Both must be filled by the same encoder.';
        END IF;
        query := query || ', ' || pgembed.numbered_query('other_', other, format('t.%I', other_column),
                                                         format('t.%I IS NOT NULL', other_column), target.op, others.keys);
    ELSE
        other := relation;
        other_column := vector_column;
    END IF;
    EXECUTE format('SELECT (SELECT count(%I) FROM %s) * (SELECT count(%I) FROM %s) > @EXACT_UP_TO@::bigint * @EXACT_UP_TO@',
                   vector_column, relation, other_column, other)
       INTO many;
    IF many AND NOT exact THEN
        method := target.method;
        lists := target.lists;
        oversample := target.oversample;
    END IF;

    IF method IS NULL THEN
        query := query || format(
            $query$
            , pairs AS MATERIALIZED (
                SELECT a.n AS a, b.n AS b, a.v %1$s b.v AS distance
                  FROM (SELECT l.numbers AS ln, l.vectors AS lv, r.numbers AS rn, r.vectors AS rv
                          FROM blocks AS l JOIN %2$s AS r ON %3$s OFFSET 0) AS met
                 CROSS JOIN LATERAL (SELECT unnest(met.ln) AS n, unnest(met.lv) AS v OFFSET 0) AS a
                  JOIN LATERAL (SELECT unnest(met.rn) AS n, unnest(met.rv) AS v OFFSET 0) AS b
                    ON %4$s AND (a.v %1$s b.v) <= $1
            )
            $query$,
            target.op,
            CASE WHEN across THEN 'other_blocks' ELSE 'blocks' END,
            CASE WHEN across THEN 'true' ELSE 'l.block <= r.block' END,
            CASE WHEN across THEN 'true' ELSE 'a.n < b.n' END);
        RETURN;
    END IF;
    SELECT query || format(
               $query$
               , neighbours AS MATERIALIZED (
                   SELECT m.n, near.*
                     FROM %10$sfirsts AS m
                    CROSS JOIN LATERAL (
                        SELECT *
                          FROM (SELECT %1$s, t.%2$I %3$s m.vector AS distance
                                  FROM %4$s AS t
                                 WHERE %5$s
                                 ORDER BY %8$s LIMIT %9$s) AS candidates
                         ORDER BY distance LIMIT %6$s) AS near
               ), unsure AS MATERIALIZED (
                   SELECT m.n / @BLOCK@ AS block, array_agg(m.n) AS numbers, array_agg(m.vector) AS vectors
                     FROM %10$sfirsts AS m
                     LEFT JOIN (SELECT n, count(*) AS came, count(*) FILTER (WHERE distance <= $1) AS near
                                  FROM neighbours GROUP BY n) AS said ON said.n = m.n
                    WHERE coalesce(said.came, 0) < least(%6$s, (SELECT count(vector) FROM numbered) - %11$s)
                       OR said.near >= %6$s
                    GROUP BY m.n / @BLOCK@
               ), pairs AS MATERIALIZED (
                   SELECT %12$s, min(distance) AS distance
                     FROM (SELECT c.first AS a, f.n AS b, f.distance
                             FROM neighbours AS f JOIN numbered AS o ON %7$s JOIN copies AS c ON c.n = o.n
                            WHERE f.distance <= $1
                           UNION ALL
                           SELECT b.n, a.n, a.v %3$s b.v
                             FROM (SELECT l.numbers AS ln, l.vectors AS lv, r.numbers AS rn, r.vectors AS rv
                                     FROM unsure AS l CROSS JOIN blocks AS r OFFSET 0) AS met
                            CROSS JOIN LATERAL (SELECT unnest(met.ln) AS n, unnest(met.lv) AS v OFFSET 0) AS a
                             JOIN LATERAL (SELECT unnest(met.rn) AS n, unnest(met.rv) AS v OFFSET 0) AS b
                               ON (a.v %3$s b.v) <= $1) AS both_ways
                    WHERE %13$s
                    GROUP BY %14$s
               )
               $query$,
               string_agg(format('t.%I AS k%s', name, place), ', ' ORDER BY place),
               vector_column, target.op, relation,
               CASE WHEN across THEN 'true'
                    ELSE format('NOT (%s)', string_agg(format('t.%I = m.k%s', name, place), ' AND ' ORDER BY place)) END,
               k,
               string_agg(format('o.k%1$s = f.k%1$s', place), ' AND ' ORDER BY place),
               CASE WHEN oversample > 1
                    THEN format('%1$s %2$s (SELECT %1$s FROM (SELECT m.vector) AS asked (%3$I))',
                                target.indexed, target.index_op, vector_column)
                    ELSE format('t.%I %s m.vector', vector_column, target.op) END,
               k * oversample,
               CASE WHEN across THEN 'other_' ELSE '' END,
               CASE WHEN across THEN 0 ELSE 1 END,
               CASE WHEN across THEN 'a, b' ELSE 'least(a, b) AS a, greatest(a, b) AS b' END,
               CASE WHEN across THEN 'true' ELSE 'a <> b' END,
               CASE WHEN across THEN 'a, b' ELSE 'least(a, b), greatest(a, b)' END)
      INTO query
      FROM unnest(target.keys) WITH ORDINALITY AS named (name, place);
END
$$;

CREATE OR REPLACE FUNCTION pgembed.near_duplicates(
    relation regclass,
    vector_column name,
    min_score double precision,
    metric text DEFAULT NULL,
    k integer DEFAULT 10,
    exact boolean DEFAULT false,
    max_score double precision DEFAULT NULL,
    other regclass DEFAULT NULL,
    other_column name DEFAULT NULL
)
RETURNS TABLE (left_key jsonb, right_key jsonb, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pairs record := pgembed.pairs_query(relation, vector_column, min_score, metric, k, exact,
                                        other => other, other_column => other_column);
    before jsonb;
BEGIN
    IF max_score IS NOT NULL THEN
        PERFORM pgembed.check_score('max_score', max_score, pairs.metric);
        IF max_score < min_score THEN
            RAISE EXCEPTION 'max_score is %, below min_score, %: no pair has both', max_score, min_score
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END IF;
    before := pgembed.ask_for(pairs.method, pairs.lists, pairs.oversample, k);
    RETURN QUERY EXECUTE format(
        $query$
        WITH %s, every AS (%s)
        SELECT l.key, r.key, pgembed.score($2, p.distance)
          FROM every AS p JOIN numbered AS l ON l.n = p.a JOIN %s AS r ON r.n = p.b
         WHERE (p.distance >= $3) IS NOT FALSE
         ORDER BY p.distance, p.a, p.b
        $query$,
        pairs.query,
        CASE WHEN other IS NULL THEN
            'SELECT least(l.n, r.n) AS a, greatest(l.n, r.n) AS b, p.distance
               FROM pairs AS p JOIN copies AS l ON l.first = p.a JOIN copies AS r ON r.first = p.b
             UNION ALL
             SELECT one.n, other.n, one.own
               FROM copies AS one JOIN copies AS other ON other.first = one.first AND one.n < other.n'
        ELSE
            'SELECT l.n AS a, r.n AS b, p.distance
               FROM pairs AS p JOIN copies AS l ON l.first = p.a JOIN other_copies AS r ON r.first = p.b'
        END,
        CASE WHEN other IS NULL THEN 'numbered' ELSE 'other_numbered' END)
        USING pgembed.distance(pairs.metric, min_score), pairs.metric, pgembed.distance(pairs.metric, max_score);
    PERFORM pgembed.put_back(before);
END
$$;
COMMENT ON FUNCTION pgembed.near_duplicates IS
    'the pairs of rows of a table, or of it and another, with at least this score, each once, the most alike first';

-- Groups are the connected components of the pairs, numbered by size, then by their smallest key.
CREATE OR REPLACE FUNCTION pgembed.duplicate_groups(
    relation regclass,
    vector_column name,
    min_score double precision,
    metric text DEFAULT NULL,
    k integer DEFAULT 10,
    exact boolean DEFAULT false,
    stored regclass DEFAULT NULL
)
RETURNS TABLE (group_id bigint, key jsonb)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pairs record := pgembed.pairs_query(relation, vector_column, min_score, metric, k, exact, stored => stored);
    before jsonb;
    total integer;
    lefts integer[];
    rights integer[];
    members integer[];
    member_keys jsonb[];
    parent integer[];
    one integer;
    other integer;
BEGIN
    before := pgembed.ask_for(pairs.method, pairs.lists, pairs.oversample, k);
    EXECUTE format(
        'WITH %s, every AS (SELECT a, b FROM pairs UNION ALL SELECT first, n FROM copies WHERE first <> n) '
        'SELECT (SELECT count(*) FROM numbered), p.lefts, p.rights, m.members, m.member_keys '
        'FROM (SELECT array_agg(a) AS lefts, array_agg(b) AS rights FROM every) AS p, '
        '(SELECT array_agg(n ORDER BY n) AS members, array_agg(key ORDER BY n) AS member_keys '
        'FROM numbered WHERE n IN (SELECT a FROM every UNION ALL SELECT b FROM every)) AS m',
        pairs.query)
        INTO total, lefts, rights, members, member_keys
        USING pgembed.distance(pairs.metric, min_score);
    PERFORM pgembed.put_back(before);

    -- Union-find with path halving. The smaller number becomes the root, so a root is a group's smallest.
    parent := ARRAY(SELECT generate_series(1, total));
    FOR i IN 1 .. coalesce(cardinality(lefts), 0) LOOP
        one := lefts[i];
        WHILE parent[one] <> one LOOP
            parent[one] := parent[parent[one]];
            one := parent[one];
        END LOOP;
        other := rights[i];
        WHILE parent[other] <> other LOOP
            parent[other] := parent[parent[other]];
            other := parent[other];
        END LOOP;
        IF one < other THEN
            parent[other] := one;
        ELSE
            parent[one] := other;
        END IF;
    END LOOP;
    -- Roots are smaller than their rows: in rising order, one step leads to the root.
    FOR i IN 1 .. coalesce(cardinality(members), 0) LOOP
        parent[members[i]] := parent[parent[members[i]]];
    END LOOP;

    RETURN QUERY
    SELECT dense_rank() OVER (ORDER BY sized.size DESC, sized.root), sized.member_key
      FROM (SELECT m.n, m.member_key, parent[m.n] AS root, count(*) OVER (PARTITION BY parent[m.n]) AS size
              FROM unnest(members, member_keys) AS m (n, member_key)) AS sized
     ORDER BY 1, sized.n;
END
$$;
COMMENT ON FUNCTION pgembed.duplicate_groups IS
    'the rows that have near-duplicates, in groups joined by chains of pairs, the largest group first';
