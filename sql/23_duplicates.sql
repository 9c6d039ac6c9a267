-- The query of all pairs of rows that are near each other: common table expressions with, at their end,
-- numbered (n, key, k1, ..., vector), copies (n, first, own) and pairs (a, b, distance), where a < b are row
-- numbers in the order of a column, if one is named, and the key. Pairs are those of first rows, of which the
-- others are copies: their vectors are equal, own is the distance of a vector to itself. Its parameter $1 is the
-- largest distance of a pair.
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
    many boolean;
    present text;
BEGIN
    target := pgembed.vector_column(relation, vector_column, wanted_metric);
    metric := target.metric;
    IF ordering IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute AS a
         WHERE a.attrelid = relation AND a.attname = ordering AND a.attnum > 0 AND NOT a.attisdropped) THEN
        RAISE EXCEPTION 'table % has no column %', relation, quote_ident(ordering)
            USING ERRCODE = 'undefined_column';
    END IF;
    IF min_score IS NULL OR min_score IN ('NaN', 'Infinity', '-Infinity')
       OR (metric = 'cosine' AND abs(min_score) > 1)
       OR (metric IN ('l2', 'l1') AND (min_score <= 0 OR min_score > 1)) THEN
        RAISE EXCEPTION 'min_score is %, which is not a score of the metric %',
            coalesce(min_score::text, 'NULL'), metric
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Scores are -1 to 1 for cosine, above 0 and up to 1 for l2 and l1, finite for inner_product.';
    ELSIF k IS NULL OR k NOT BETWEEN @NEIGHBOURS.least@ AND @NEIGHBOURS.most@ THEN
        RAISE EXCEPTION 'k is %, it must be @NEIGHBOURS.least@ to @NEIGHBOURS.most@ neighbours', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    present := format('t.%I IS NOT NULL', vector_column);
    EXECUTE format('SELECT count(*) > @EXACT_UP_TO@ FROM (SELECT FROM %s AS t WHERE %s LIMIT @EXACT_UP_TO@ + 1) AS few',
                   relation, present)
       INTO many;
    IF many AND NOT exact THEN
        method := target.method;
        lists := target.lists;
        oversample := target.oversample;
    END IF;

    SELECT format(
               $query$
               numbered AS MATERIALIZED (
                   SELECT row_number() OVER (ORDER BY %s%s)::integer AS n, jsonb_build_object(%s) AS key, %s,
                          t.%I AS vector
                     FROM %s AS t
                    WHERE %s
               ), copies AS MATERIALIZED (
                   SELECT n, own, CASE WHEN content IS NULL THEN n ELSE min(n) OVER (PARTITION BY content) END AS first
                     FROM (SELECT n, own, CASE WHEN own <= $1 THEN md5(array_send(vector::real[])) END AS content
                             FROM (SELECT n, vector, vector %s vector AS own FROM numbered) AS measured
                           OFFSET 0) AS hashed
               ), firsts AS NOT MATERIALIZED (
                   SELECT m.* FROM numbered AS m JOIN copies AS c ON c.n = m.n
                    WHERE c.n = c.first AND m.vector IS NOT NULL
               ), blocks AS MATERIALIZED (
                   SELECT n / @BLOCK@ AS block, array_agg(n) AS numbers, array_agg(vector) AS vectors
                     FROM firsts GROUP BY n / @BLOCK@
               )
               $query$,
               coalesce('t.' || quote_ident(ordering) || CASE WHEN descending THEN ' DESC, ' ELSE ', ' END, ''),
               string_agg(format('t.%I', name), ', ' ORDER BY place),
               string_agg(format('%1$L, t.%1$I', name), ', ' ORDER BY place),
               string_agg(format('t.%I AS k%s', name, place), ', ' ORDER BY place),
               vector_column, relation, CASE WHEN ordering IS NULL THEN present ELSE 'true' END, target.op)
      INTO query
      FROM unnest(target.keys) WITH ORDINALITY AS named (name, place);

    IF method IS NULL THEN
        query := query || format(
            $query$
            , pairs AS MATERIALIZED (
                SELECT a.n AS a, b.n AS b, a.v %1$s b.v AS distance
                  FROM (SELECT l.numbers AS ln, l.vectors AS lv, r.numbers AS rn, r.vectors AS rv
                          FROM blocks AS l JOIN blocks AS r ON l.block <= r.block OFFSET 0) AS met
                 CROSS JOIN LATERAL (SELECT unnest(met.ln) AS n, unnest(met.lv) AS v OFFSET 0) AS a
                  JOIN LATERAL (SELECT unnest(met.rn) AS n, unnest(met.rv) AS v OFFSET 0) AS b
                    ON a.n < b.n AND (a.v %1$s b.v) <= $1
            )
            $query$,
            target.op);
        RETURN;
    END IF;
    SELECT query || format(
               $query$
               , neighbours AS MATERIALIZED (
                   SELECT m.n, near.*
                     FROM firsts AS m
                    CROSS JOIN LATERAL (
                        SELECT *
                          FROM (SELECT %1$s, t.%2$I %3$s m.vector AS distance
                                  FROM %4$s AS t
                                 WHERE NOT (%5$s)
                                 ORDER BY %8$s LIMIT %9$s) AS candidates
                         ORDER BY distance LIMIT %6$s) AS near
               ), unsure AS MATERIALIZED (
                   SELECT m.n / @BLOCK@ AS block, array_agg(m.n) AS numbers, array_agg(m.vector) AS vectors
                     FROM firsts AS m
                     LEFT JOIN (SELECT n, count(*) AS came, count(*) FILTER (WHERE distance <= $1) AS near
                                  FROM neighbours GROUP BY n) AS said ON said.n = m.n
                    WHERE coalesce(said.came, 0) < least(%6$s, (SELECT count(vector) FROM numbered) - 1)
                       OR said.near >= %6$s
                    GROUP BY m.n / @BLOCK@
               ), pairs AS MATERIALIZED (
                   SELECT a, b, min(distance) AS distance
                     FROM (SELECT least(f.n, c.first) AS a, greatest(f.n, c.first) AS b, f.distance
                             FROM neighbours AS f JOIN numbered AS o ON %7$s JOIN copies AS c ON c.n = o.n
                            WHERE f.distance <= $1 AND f.n <> c.first
                           UNION ALL
                           SELECT least(a.n, b.n), greatest(a.n, b.n), a.v %3$s b.v
                             FROM (SELECT l.numbers AS ln, l.vectors AS lv, r.numbers AS rn, r.vectors AS rv
                                     FROM unsure AS l CROSS JOIN blocks AS r OFFSET 0) AS met
                            CROSS JOIN LATERAL (SELECT unnest(met.ln) AS n, unnest(met.lv) AS v OFFSET 0) AS a
                             JOIN LATERAL (SELECT unnest(met.rn) AS n, unnest(met.rv) AS v OFFSET 0) AS b
                               ON a.n <> b.n AND (a.v %3$s b.v) <= $1) AS both_ways
                    GROUP BY a, b
               )
               $query$,
               string_agg(format('t.%I AS k%s', name, place), ', ' ORDER BY place),
               vector_column, target.op, relation,
               string_agg(format('t.%I = m.k%s', name, place), ' AND ' ORDER BY place),
               k,
               string_agg(format('o.k%1$s = f.k%1$s', place), ' AND ' ORDER BY place),
               CASE WHEN oversample > 1
                    THEN format('%1$s %2$s (SELECT %1$s FROM (SELECT m.vector) AS asked (%3$I))',
                                target.indexed, target.index_op, vector_column)
                    ELSE format('t.%I %s m.vector', vector_column, target.op) END,
               k * oversample)
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
    exact boolean DEFAULT false
)
RETURNS TABLE (left_key jsonb, right_key jsonb, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pairs record := pgembed.pairs_query(relation, vector_column, min_score, metric, k, exact);
    before jsonb;
BEGIN
    before := pgembed.ask_for(pairs.method, pairs.lists, pairs.oversample, k);
    RETURN QUERY EXECUTE format(
        $query$
        WITH %s, every AS (
            SELECT least(l.n, r.n) AS a, greatest(l.n, r.n) AS b, p.distance
              FROM pairs AS p JOIN copies AS l ON l.first = p.a JOIN copies AS r ON r.first = p.b
            UNION ALL
            SELECT one.n, other.n, one.own
              FROM copies AS one JOIN copies AS other ON other.first = one.first AND one.n < other.n
        )
        SELECT l.key, r.key, pgembed.score($2, p.distance)
          FROM every AS p JOIN numbered AS l ON l.n = p.a JOIN numbered AS r ON r.n = p.b
         ORDER BY p.distance, p.a, p.b
        $query$,
        pairs.query)
        USING pgembed.distance(pairs.metric, min_score), pairs.metric;
    PERFORM pgembed.put_back(before);
END
$$;
COMMENT ON FUNCTION pgembed.near_duplicates IS
    'the pairs of rows with at least this score, each once, the most alike first';

-- Groups are the connected components of the pairs, numbered by size, then by their smallest key.
CREATE OR REPLACE FUNCTION pgembed.duplicate_groups(
    relation regclass,
    vector_column name,
    min_score double precision,
    metric text DEFAULT NULL,
    k integer DEFAULT 10,
    exact boolean DEFAULT false
)
RETURNS TABLE (group_id bigint, key jsonb)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pairs record := pgembed.pairs_query(relation, vector_column, min_score, metric, k, exact);
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
