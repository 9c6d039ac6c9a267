-- The nearest rows that differ from each other: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998)
-- among the nearest candidates, measured by cosine similarity whatever the metric of the search, as
-- pgembed/queries/search/diversity.py does.
DO $do$
DECLARE
    accepted text;
    definition text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        definition := $function$
CREATE OR REPLACE FUNCTION pgembed.diversify(
    relation regclass,
    vector_column name,
    query @type@,
    k integer DEFAULT 10,
    lambda double precision DEFAULT 0.5,
    candidates integer DEFAULT @CANDIDATES_FLOOR@,
    metric text DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (key jsonb, distance double precision, score double precision, rank integer)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    keys jsonb[];
    distances double precision[];
    scores double precision[];
    vectors @extschema:vector@.vector[];
    relevance double precision[];
    redundancy double precision[]; -- the greatest similarity to a chosen row; infinite for those themselves
    chosen integer;
    picked integer[] := '{}';
BEGIN
    IF lambda IS NULL OR NOT lambda BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'lambda is %, it must be 0 to 1', coalesce(lambda::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = '1 is relevance alone, 0 is variety alone.';
    ELSIF k IS NULL OR k < 1 OR candidates IS NULL OR candidates < k THEN
        RAISE EXCEPTION 'k is % of % candidates, it must be at least 1 and at most all of them',
            coalesce(k::text, 'NULL'), coalesce(candidates::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT array_agg(n.key ORDER BY n.place), array_agg(n.distance ORDER BY n.place),
           array_agg(n.score ORDER BY n.place), array_agg(n.extra::@extschema:vector@.vector ORDER BY n.place),
           array_agg(coalesce(nullif(1 - (n.extra::@extschema:vector@.vector
               OPERATOR(@extschema:vector@.<=>) query::@extschema:vector@.vector), 'NaN'), 0) ORDER BY n.place)
      INTO keys, distances, scores, vectors, relevance
      FROM pgembed.nearest(relation, vector_column, query::@extschema:vector@.vector, candidates, metric, exact,
                           vector_column) WITH ORDINALITY AS n (key, distance, score, extra, place);
    redundancy := array_fill('-Infinity'::double precision, ARRAY[coalesce(cardinality(keys), 0)]);
    SELECT u.i INTO chosen
      FROM unnest(relevance) WITH ORDINALITY AS u (relevant, i) ORDER BY u.relevant DESC, u.i LIMIT 1;
    WHILE chosen IS NOT NULL AND cardinality(picked) < k LOOP
        picked := picked || chosen;
        redundancy := ARRAY(
            SELECT CASE WHEN u.i = chosen THEN 'Infinity' ELSE greatest(u.redundant, coalesce(nullif(
                       1 - (u.vector OPERATOR(@extschema:vector@.<=>) vectors[chosen]), 'NaN'), 0)) END
              FROM unnest(redundancy, vectors) WITH ORDINALITY AS u (redundant, vector, i)
             ORDER BY u.i);
        chosen := NULL;
        SELECT u.i INTO chosen
          FROM unnest(relevance, redundancy) WITH ORDINALITY AS u (relevant, redundant, i)
         WHERE u.redundant < 'Infinity'
         ORDER BY lambda * u.relevant - (1 - lambda) * u.redundant DESC, u.i
         LIMIT 1;
    END LOOP;
    RETURN QUERY SELECT keys[p.i], distances[p.i], scores[p.i], p.place::integer
                   FROM unnest(picked) WITH ORDINALITY AS p (i, place);
END
$body$
$function$;
        EXECUTE replace(definition, '@type@', accepted);
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.diversify(regclass, name, %s, integer, float8, integer, text, boolean) IS %L',
            accepted,
            'k of the nearest candidates that differ from each other: primary key, distance, score, rank');
    END LOOP;
END
$do$;
