-- What the nearest rows of each row tell of it, as in pgembed/queries/classification/neighbourhoods.py, and how good labels
-- by neighbours are, as pgembed/measuring/evaluation.py measures it.

-- The k nearest rows of each of several, as common table expressions: asked (n, key, vector, ...) and found (n,
-- key, extra, distance, rank). A row that is asked does not find itself.
CREATE OR REPLACE FUNCTION pgembed.neighbours_query(
    relation regclass,
    vector_column name,
    extra_column name,            -- rows where it is NULL are not found
    k integer,
    metric text,
    exact boolean,
    asked text DEFAULT NULL,      -- what is asked, as SQL; NULL: all rows t that can be found
    also text DEFAULT 'NULL',     -- further columns of these rows, as SQL
    condition text DEFAULT '''true''' -- that rows t fulfil for a row a that is asked: SQL that gives it as SQL
)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k is %, it must be at least 1', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF asked IS NULL THEN
        SELECT format(
                   'SELECT row_number() OVER (ORDER BY %s) AS n, jsonb_build_object(%s) AS key, t.%I AS vector, '
                   '%s FROM %s AS t WHERE t.%3$I IS NOT NULL AND %6$s',
                   string_agg(format('t.%I', name), ', ' ORDER BY place),
                   string_agg(format('%1$L, t.%1$I', name), ', ' ORDER BY place),
                   vector_column, also, relation,
                   CASE WHEN extra_column IS NULL THEN 'true' ELSE format('t.%I IS NOT NULL', extra_column) END)
          INTO asked
          FROM unnest(target.keys) WITH ORDINALITY AS named (name, place);
    END IF;
    RETURN format(
        $query$
        asked AS MATERIALIZED (%1$s),
        found AS MATERIALIZED (
            SELECT a.n, f.*
              FROM asked AS a
             CROSS JOIN LATERAL (
                 SELECT n.key, n.extra, n.distance, row_number() OVER (ORDER BY n.place) AS rank
                   FROM pgembed.nearest(%2$L, %3$L, a.vector::%10$s,
                                        least(%4$s::bigint + (a.key IS NOT NULL)::integer, 2147483647)::integer,
                                        %5$L, %6$L, %7$L, %8$s)
                        WITH ORDINALITY AS n (key, distance, score, extra, place)
                  WHERE n.key IS DISTINCT FROM a.key
                  ORDER BY n.place LIMIT %4$s) AS f
             WHERE a.vector IS NOT NULL AND (a.key IS NULL OR (a.vector %9$s a.vector) < 'NaN')
        )
        $query$,
        asked, relation, vector_column, k, target.metric, exact, extra_column, condition, target.op,
        $type$@extschema:vector@.vector$type$);
END
$$;

-- The labels that the labelled rows elect for each other: the common table expressions of pgembed.neighbours_query,
-- with the column own, and of pgembed.election_query.
CREATE OR REPLACE FUNCTION pgembed.own_labels_query(
    relation regclass,
    vector_column name,
    label_column name,
    k integer,
    weights text,
    temperature double precision,
    apart double precision, -- rows that have at least this score do not vote for each other
    apart_column name,      -- nor do those that have the same value there
    metric text,
    exact boolean
)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, metric);
    condition text := quote_literal('true');
BEGIN
    PERFORM pgembed.label_kind(relation, label_column, false),
            pgembed.check_limits(NULL, NULL, NULL, temperature);
    IF apart IS NOT NULL THEN
        PERFORM pgembed.check_score('apart', apart, target.metric);
        condition := format('%L', format('(t.%I %s $1::%s) > %L', vector_column, target.op, target.storage,
                                         pgembed.distance(target.metric, apart)));
    END IF;
    IF apart_column IS NOT NULL THEN
        condition := format('%s || %L || quote_nullable(a.apart) || %L', condition,
                            format(' AND (%s <> ', pgembed.column_value(relation, apart_column)), ') IS NOT FALSE');
    END IF;
    RETURN pgembed.neighbours_query(
               relation, vector_column, label_column, k, target.metric, exact,
               also => format('t.%I AS own', label_column)
                       || CASE WHEN apart_column IS NULL THEN '' ELSE format(', t.%I AS apart', apart_column) END,
               condition => condition)
           || pgembed.election_query(relation, vector_column, label_column, 'class', weights, temperature, target.metric);
END
$$;

CREATE OR REPLACE FUNCTION pgembed.label_issues(
    relation regclass,
    vector_column name,
    label_column name,
    k integer DEFAULT 15,
    weights text DEFAULT 'distance',
    apart double precision DEFAULT NULL,
    apart_column name DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, label text, suggested text, share double precision, suggested_share double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE
        'WITH ' || pgembed.own_labels_query(relation, vector_column, label_column, k, weights, temperature, apart,
                                            apart_column, metric, exact)
        || $query$
        , own AS (
            SELECT v.n, coalesce(sum(v.weight) FILTER (WHERE v.label = a.own), 0) / sum(v.weight) AS share
              FROM votes AS v JOIN asked AS a ON a.n = v.n
             GROUP BY v.n
        )
        SELECT a.key, a.own::text, w.label::text, o.share, w.share
          FROM asked AS a JOIN won AS w ON w.n = a.n JOIN own AS o ON o.n = a.n
         WHERE w.label <> a.own
         ORDER BY w.share - o.share DESC, a.n
        $query$;
END
$$;
COMMENT ON FUNCTION pgembed.label_issues IS
    'the rows whose k nearest labelled rows elect another label than theirs, the surest contradictions first';

CREATE OR REPLACE FUNCTION pgembed.evaluate(
    relation regclass,
    vector_column name,
    label_column name,
    k integer DEFAULT 15,
    weights text DEFAULT 'distance',
    apart double precision DEFAULT NULL,
    apart_column name DEFAULT NULL,
    temperature double precision DEFAULT 0.05,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (evaluated bigint, accuracy double precision, macro_f1 double precision,
               calibration_error double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgembed.label_kind(relation, label_column, false) <> 'class' THEN
        RAISE EXCEPTION 'the labels are of the kind array, they must be classes'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY EXECUTE
        'WITH ' || pgembed.own_labels_query(relation, vector_column, label_column, k, weights, temperature, apart,
                                            apart_column, metric, exact)
        || $query$
        , judged AS MATERIALIZED (
            SELECT a.own, w.label, coalesce(w.share, 0) AS share, (w.label = a.own IS TRUE)::integer AS hit
              FROM asked AS a LEFT JOIN won AS w ON w.n = a.n
        ), labels AS (
            SELECT sum(hit)::float8 / sum(rows) AS half_f1
              FROM (SELECT own AS label, hit, 1 AS rows FROM judged
                    UNION ALL SELECT label, 0, 1 FROM judged WHERE label IS NOT NULL) AS told
             GROUP BY label
        ), ranges AS (
            SELECT abs(sum(hit) - sum(share)) AS gap FROM judged GROUP BY least(floor(share * 15), 14)
        )
        SELECT count(*), avg(hit)::float8, (SELECT avg(half_f1 + half_f1) FROM labels),
               (SELECT sum(gap) FROM ranges) / nullif(count(*), 0)
          FROM judged
        $query$;
END
$$;
COMMENT ON FUNCTION pgembed.evaluate IS
    'how good labels by neighbours are, of each labelled row by all others: accuracy, macro F1, calibration error';

CREATE OR REPLACE FUNCTION pgembed.outliers(
    relation regclass,
    vector_column name,
    k integer DEFAULT 10,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE
        'WITH ' || pgembed.neighbours_query(relation, vector_column, NULL, k, metric, exact)
        || $query$
        , far AS (SELECT n, avg(distance ORDER BY rank) AS distance FROM found GROUP BY n)
        SELECT a.key, f.distance FROM asked AS a JOIN far AS f ON f.n = a.n ORDER BY f.distance DESC, a.n
        $query$;
END
$$;
COMMENT ON FUNCTION pgembed.outliers IS
    'all rows by their mean distance to their k nearest rows, the farthest first';

CREATE OR REPLACE FUNCTION pgembed.representatives(
    relation regclass,
    vector_column name,
    k integer DEFAULT 10,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE
        'WITH ' || pgembed.neighbours_query(relation, vector_column, NULL, k, metric, exact)
        || $query$
        , far AS MATERIALIZED (
            SELECT a.n, a.key, avg(f.distance ORDER BY f.rank) AS distance
              FROM found AS f JOIN asked AS a ON a.n = f.n GROUP BY a.n, a.key
        )
        SELECT own.key, own.distance
          FROM far AS own JOIN found AS f ON f.n = own.n JOIN far AS other ON other.key = f.key
         GROUP BY own.n, own.key, own.distance
        HAVING bool_and(own.distance < other.distance OR own.distance = other.distance AND own.n < other.n)
         ORDER BY own.distance, own.n
        $query$;
END
$$;
COMMENT ON FUNCTION pgembed.representatives IS
    'one row for each dense region: those nearer to their k nearest rows than all of these are to theirs';
