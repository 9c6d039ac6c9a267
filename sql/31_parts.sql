-- Rows by their best parts, as semantic_search(Article.parts, ...) finds them. A part belongs to the row that
-- its foreign key says.
DO $do$
DECLARE
    accepted text;
BEGIN
    FOREACH accepted IN ARRAY ARRAY[$type$@extschema:vector@.vector$type$, $type$@extschema:vector@.halfvec$type$, 'text'] LOOP
        EXECUTE replace($definition$
CREATE OR REPLACE FUNCTION pgembed.search_parts(
    relation regclass,
    parts name,
    query @type@,
    k integer DEFAULT 10,
    best integer DEFAULT 1,
    max_distance double precision DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (
    key jsonb, number integer, start integer, "end" integer, text text,
    distance double precision, score double precision
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    declared record;
    parts_table regclass;
    owner text;
    owner_key text;
BEGIN
    SELECT e.parts ->> 'table' AS name, e.metric INTO declared
      FROM pgembed.embedding_columns AS e
     WHERE e.relation = search_parts.relation AND e.column_name = search_parts.parts AND e.parts IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table % has no parts called %', relation, coalesce(quote_ident(parts), 'NULL')
            USING ERRCODE = 'undefined_object',
                  HINT = 'Its parts: ' || coalesce(
                      (SELECT string_agg(quote_ident(e.column_name), ', ' ORDER BY e.column_name)
                         FROM pgembed.embedding_columns AS e
                        WHERE e.relation = search_parts.relation AND e.parts IS NOT NULL),
                      'none') || '.';
    END IF;
    parts_table := pgembed.table_beside(relation, declared.name::name);
    SELECT format('ROW(%s)', string_agg(format('t.%I', a.attname), ', ' ORDER BY k.place)),
           format('jsonb_build_object(%s)',
                  string_agg(format('%L, p.%I', r.attname, a.attname), ', ' ORDER BY k.place))
      INTO owner, owner_key
      FROM (SELECT c.conkey, c.confkey
              FROM pg_constraint AS c
             WHERE c.conrelid = parts_table AND c.confrelid = relation AND c.contype = 'f'
             ORDER BY c.oid
             LIMIT 1) AS c
     CROSS JOIN LATERAL unnest(c.conkey, c.confkey) WITH ORDINALITY AS k (own, referred, place)
      JOIN pg_attribute AS a ON a.attrelid = parts_table AND a.attnum = k.own
      JOIN pg_attribute AS r ON r.attrelid = relation AND r.attnum = k.referred
    HAVING count(*) > 0;
    IF owner IS NULL THEN
        RAISE EXCEPTION 'there is no table % that refers to %', quote_ident(declared.name), relation
            USING ERRCODE = 'undefined_table';
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT %s, p.number, p.start, p."end", p.text, b.distance, b.score
           FROM pgembed.best_rows($1, ''embedding'', %L, NULL, $2, $3, $4, $5, $6, $7)
           WITH ORDINALITY AS b (key, distance, score, place)
           JOIN %s AS p ON p.id = (b.key ->> ''id'')::bigint
          ORDER BY b.place',
        owner_key, owner, parts_table
    ) USING parts_table, query::@extschema:vector@.vector, k, best, max_distance, declared.metric, exact;
END
$body$
$definition$, '@type@', accepted);
        EXECUTE format(
            'COMMENT ON FUNCTION pgembed.search_parts(regclass, name, %s, integer, integer, float8, boolean) IS %L',
            accepted,
            'the k rows with the nearest parts, each by its best ones: primary key, part, distance, score');
    END LOOP;
END
$do$;
