-- Every embedding column of the database, read from the catalogue: the comment on the index of a column's
-- pending rows is its registration. It comes with the table (create_all, dump and restore, a rename of the
-- table) and goes with it, so there is no list that could disagree with the tables.
CREATE OR REPLACE FUNCTION pgembed.registration(comment text)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    facts jsonb;
BEGIN
    IF comment LIKE '{"pgembed":%' THEN
        facts := comment::jsonb;
        IF facts ?& ARRAY['column', 'digest', 'encoder', 'fingerprint', 'metric', 'fill']
            AND jsonb_typeof(facts -> 'dimensions') = 'number'
            AND jsonb_typeof(facts -> 'sources') = 'array'
            AND coalesce(jsonb_typeof(facts -> 'fields'), 'array') = 'array'
            AND coalesce(jsonb_typeof(facts -> 'options'), 'object') = 'object'
        THEN
            RETURN facts;
        END IF;
    END IF;
    RETURN NULL; -- somebody else's comment
EXCEPTION WHEN invalid_text_representation THEN
    RETURN NULL;
END
$$;

CREATE OR REPLACE VIEW pgembed.embedding_columns AS
WITH commented AS MATERIALIZED (
    SELECT i.indexrelid,
           i.indrelid,
           i.indpred,
           pgembed.registration(d.description) AS facts
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_description AS d
      ON d.objoid = i.indexrelid AND d.objsubid = 0 AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indpred IS NOT NULL AND NOT c.relispartition
)
SELECT indrelid::pg_catalog.regclass AS relation,
       (facts ->> 'column')::pg_catalog.name AS column_name,
       (facts ->> 'digest')::pg_catalog.name AS digest_name,
       ARRAY(SELECT pg_catalog.jsonb_array_elements_text(facts -> 'sources'))::pg_catalog.name[] AS sources,
       facts ->> 'template' AS template,
       facts ->> 'encoder' AS encoder,
       facts ->> 'fingerprint' AS fingerprint,
       (facts ->> 'dimensions')::integer AS dimensions,
       facts ->> 'metric' AS metric,
       facts ->> 'fill' AS fill,
       indexrelid::pg_catalog.regclass AS pending_index,
       -- Here, because it locks the table (it waits for ALTER TABLE), and most readers do not ask for it.
       pg_catalog.pg_get_expr(indpred, indrelid) AS pending_predicate,
       CASE WHEN facts -> 'fields' IS NOT NULL
            THEN ARRAY(SELECT pg_catalog.jsonb_array_elements_text(facts -> 'fields')) END AS fields,
       facts -> 'options' AS options
FROM commented
WHERE facts IS NOT NULL;
COMMENT ON VIEW pgembed.embedding_columns IS
    'the embedding columns of this database; pending_predicate is the SQL condition of the rows to be filled';
