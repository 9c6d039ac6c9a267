-- Searches by more than the distance, as pgembed/queries/search/boosts.py makes them. No text is executed as SQL: a
-- boost is the name of a column, or of a function of the row, which runs with the rights of the caller.

-- The rows of a search with a value of each, as the text of a subquery (k1, ..., value, distance); of its
-- parameters, $1 is the query. (With OFFSET 0 behind it, each distance is computed once.) What `value` says is SQL over the row t, made by pgembed.column_value or
-- pgembed.boost_value.
CREATE OR REPLACE FUNCTION pgembed.valued_rows(
    relation regclass,
    vector_column name,
    wanted_metric text,
    value text,
    OUT whole text, -- all rows that have a vector
    OUT near text,  -- those of the keys in $2, whose distances are in $3
    OUT key text,          -- the key of a row, as a JSON object
    OUT key_columns text,
    OUT metric text,
    OUT method text,       -- of the index that can be used
    OUT dimensions integer
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(relation, vector_column, wanted_metric);
    columns text;
    same text;
BEGIN
    metric := target.metric;
    method := target.method;
    dimensions := target.dimensions;
    SELECT string_agg(format('t.%I AS k%s', k.name, k.place), ', ' ORDER BY k.place),
           string_agg(format('k%s', k.place), ', ' ORDER BY k.place),
           format('jsonb_build_object(%s)', string_agg(format('%L, k%s', k.name, k.place), ', ' ORDER BY k.place)),
           string_agg(format('t.%1$I = r.%1$I', k.name), ' AND ' ORDER BY k.place)
      INTO columns, key_columns, key, same
      FROM unnest(target.keys) WITH ORDINALITY AS k (name, place);
    whole := format('SELECT %s, %s AS value, t.%I %s $1::%s AS distance FROM %s AS t WHERE t.%3$I IS NOT NULL',
                    columns, value, vector_column, target.op, target.storage, relation);
    near := format(
        'SELECT %s, %s AS value, n.distance
           FROM unnest($2, $3) AS n (key, distance)
          CROSS JOIN LATERAL jsonb_to_record(n.key) AS r (%s)
           JOIN %s AS t ON %s',
        columns, value, pgembed.key_definition(relation, target.keys), relation, same);
END
$$;

-- A boost of the row t, as SQL.
CREATE OR REPLACE FUNCTION pgembed.boost_value(relation regclass, boost text)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    parts text[];
    called text;
BEGIN
    IF EXISTS (SELECT FROM pg_attribute AS a
                WHERE a.attrelid = relation AND a.attname = boost AND a.attnum > 0 AND NOT a.attisdropped) THEN
        RETURN format('t.%I', boost);
    END IF;
    BEGIN
        parts := parse_ident(boost);
    EXCEPTION WHEN invalid_parameter_value THEN -- it is no name at all
        parts := NULL;
    END;
    SELECT format('%I.%I(t)', n.nspname, p.proname) INTO called
      FROM pg_proc AS p
      JOIN pg_namespace AS n ON n.oid = p.pronamespace
      JOIN pg_class AS c ON c.reltype = p.proargtypes[0]
     WHERE c.oid = relation AND p.pronargs = 1 AND p.prokind = 'f' AND NOT p.proretset
       AND ARRAY[n.nspname, p.proname]::text[] = parts;
    IF called IS NULL THEN
        RAISE EXCEPTION 'the boost is %, which is neither a column of table % nor a function of its rows',
            coalesce(quote_literal(boost), 'NULL'), relation
            USING ERRCODE = 'undefined_column',
                  HINT = format('A function is named with its schema, ''public.recent'' of CREATE FUNCTION '
                                'public.recent(%s) RETURNS float8.', relation);
    END IF;
    RETURN called;
END
$$;

CREATE OR REPLACE FUNCTION pgembed.refuse_decay(
    scale double precision,
    margin double precision,
    decay double precision,
    kind text
)
RETURNS double precision
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'scale is %, margin %, decay %, kind %',
        coalesce(scale::text, 'NULL'), coalesce(margin::text, 'NULL'), coalesce(decay::text, 'NULL'),
        coalesce(quote_literal(kind), 'NULL')
        USING ERRCODE = 'invalid_parameter_value',
              HINT = 'They must be a scale above 0, a margin that is not negative, a decay between 0 and 1, '
                     'and exponential, gaussian or linear.';
END
$$;

CREATE OR REPLACE FUNCTION pgembed.decay(
    value double precision,
    scale double precision,
    origin double precision,
    margin double precision DEFAULT 0,
    decay double precision DEFAULT 0.5,
    kind text DEFAULT 'exponential'
)
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN scale > 0 AND scale < 'Infinity' AND margin >= 0 AND margin < 'Infinity'
                 AND decay > 0 AND decay < 1 AND kind IN ('exponential', 'gaussian', 'linear')
    THEN coalesce(
        CASE kind
            WHEN 'exponential'
                THEN exp(greatest(ln(decay) * (greatest(abs(value - origin) - margin, 0) / scale), @LEAST_EXPONENT@))
            WHEN 'gaussian'
                THEN exp(greatest(ln(decay) * (greatest(abs(value - origin) - margin, 0) / scale) ^ 2, @LEAST_EXPONENT@))
            ELSE greatest(1 - (1 - decay) * (greatest(abs(value - origin) - margin, 0) / scale), 0)
        END, 1)
    ELSE pgembed.refuse_decay(scale, margin, decay, kind)
END;
COMMENT ON FUNCTION pgembed.decay(float8, float8, float8, float8, float8, text) IS
    'a number that falls from 1 towards 0 with the distance of value from origin; decay at the distance margin + scale';

DO $do$
DECLARE
    accepted text[];
BEGIN
    FOREACH accepted SLICE 1 IN ARRAY ARRAY[
        ['timestamptz', 'timestamptz', 'now()'],
        ['timestamp', 'timestamp', 'localtimestamp'],
        ['date', 'timestamp', 'localtimestamp']
    ] LOOP
        EXECUTE format(
            $function$
            CREATE OR REPLACE FUNCTION pgembed.decay(
                value %1$s,
                scale interval,
                origin %2$s DEFAULT %3$s,
                margin interval DEFAULT '0',
                decay double precision DEFAULT 0.5,
                kind text DEFAULT 'exponential'
            )
            RETURNS double precision
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            RETURN pgembed.decay(extract(epoch FROM value - origin)::float8, extract(epoch FROM scale)::float8,
                                 0::float8, extract(epoch FROM margin)::float8, decay, kind)
            $function$,
            VARIADIC accepted);
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.decay(%s, interval, %s, interval, float8, text) IS %L',
            accepted[1], accepted[2],
            'a number that falls from 1 towards 0 with the time from origin; decay after margin + scale');
    END LOOP;
END
$do$;

DO $do$
DECLARE
    accepted text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        EXECUTE replace($function$
CREATE OR REPLACE FUNCTION pgembed.search_boosted(
    relation regclass,
    vector_column name,
    boost text,
    query @type@,
    k integer DEFAULT 10,
    boosting text DEFAULT 'multiply',
    candidates integer DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision, score double precision)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    asked record := pgembed.valued_rows(relation, vector_column, metric, pgembed.boost_value(relation, boost));
    neutral double precision := CASE boosting WHEN 'multiply' THEN 1 WHEN 'add' THEN 0 END;
    keys jsonb[];
    distances double precision[];
BEGIN
    PERFORM pgembed.check_query(relation, vector_column, asked.dimensions, asked.metric,
                                query::@extschema:vector@.vector, k);
    IF neutral IS NULL THEN
        RAISE EXCEPTION 'boosting is %, it must be multiply or add', coalesce(quote_literal(boosting), 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates < k OR candidates IS NOT NULL AND exact IS NOT FALSE THEN
        RAISE EXCEPTION '% candidates for % rows, exact => %', candidates, k, coalesce(exact::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'They must be as many as the rows at least; exact => true scores all rows.';
    END IF;
    IF exact IS FALSE THEN
        SELECT array_agg(n.key), array_agg(n.distance)
          INTO keys, distances
          FROM pgembed.nearest(
                   relation, vector_column, query::@extschema:vector@.vector,
                   coalesce(candidates, greatest(@CANDIDATES_PER_ROW@ * k::bigint, @CANDIDATES_FLOOR@)::integer),
                   asked.metric, false, NULL) AS n;
    END IF;
    RETURN QUERY EXECUTE format(
        $query$
        SELECT %1$s, distance, score
          FROM (SELECT *, pgembed.score($4, distance) %2$s coalesce(nullif(value::float8, 'NaN'), $5) AS score
                  FROM (%3$s OFFSET 0) AS r
                 WHERE distance < 'NaN' AND (distance <= $6) IS NOT FALSE) AS s
         ORDER BY score DESC, distance, %4$s
         LIMIT $7
        $query$,
        asked.key, CASE boosting WHEN 'add' THEN '+' ELSE '*' END,
        CASE WHEN exact IS FALSE THEN asked.near ELSE asked.whole END, asked.key_columns
    ) USING query::@extschema:vector@.vector, keys, distances, asked.metric, neutral, max_distance, k;
END
$body$
$function$, '@type@', accepted);
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.search_boosted(regclass, name, text, %s, integer, text, integer, float8, text, boolean) IS %L',
            accepted,
            'the k best of the nearest candidates by the score and a boost of each: primary key, distance, score');
    END LOOP;
END
$do$;
