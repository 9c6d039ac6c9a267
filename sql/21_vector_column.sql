-- What the search functions have to know of a column.
CREATE OR REPLACE FUNCTION pgembed.vector_column(
    relation regclass,
    vector_column name,
    wanted_metric text DEFAULT NULL,
    OUT metric text,        -- 'cosine', 'l2', 'inner_product' or 'l1'
    OUT op text,            -- the operator of its distance, qualified
    OUT storage text,       -- the column's type, qualified
    OUT dimensions integer, -- NULL where the column takes any number
    OUT keys name[],        -- the columns of the primary key; of a materialized view, those of a unique index
    OUT method text,        -- of the index that serves the metric, and the rest of pgembed.vector_indexes
    OUT lists integer,
    OUT indexed text,
    OUT index_op text,
    OUT oversample integer
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_view boolean := (SELECT relkind = 'm' FROM pg_class WHERE oid = relation); -- with rows of its own
    extension_schema name;
    type_name name;
    candidate record;
BEGIN
    IF relation IS NULL OR vector_column IS NULL THEN
        RAISE EXCEPTION 'table and vector column must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;

    SELECT t.typname, nullif(a.atttypmod, -1)
      INTO type_name, dimensions
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
     WHERE a.attrelid = relation AND a.attname = vector_column AND a.attnum > 0 AND NOT a.attisdropped;
    IF type_name IS NULL THEN
        RAISE EXCEPTION 'table % has no column %', relation, quote_ident(vector_column)
            USING ERRCODE = 'undefined_column',
                  HINT = 'Its vector columns: ' || coalesce(
                      (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                         FROM pg_attribute AS a
                         JOIN pg_type AS t ON t.oid = a.atttypid
                        WHERE a.attrelid = relation AND t.typname IN ('vector', 'halfvec')
                          AND NOT a.attisdropped),
                      'none') || '.';
    ELSIF type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column % of table % is of the type %, not vector or halfvec',
            quote_ident(vector_column), relation, type_name
            USING ERRCODE = 'wrong_object_type', HINT = 'Name the column that holds the vectors.';
    END IF;

    SELECT array_agg(a.attname ORDER BY k.place)
      INTO keys
      FROM (SELECT i.indrelid, i.indkey, i.indnkeyatts
              FROM pg_index AS i
             WHERE i.indrelid = relation
               AND (i.indisprimary
                    OR is_view AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL)
             ORDER BY i.indexrelid
             LIMIT 1) AS i
     CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
      JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE k.place <= i.indnkeyatts;
    IF keys IS NULL AND is_view THEN
        RAISE EXCEPTION 'materialized view % has no unique index', relation
            USING ERRCODE = 'invalid_table_definition',
                  HINT = 'The rows found are told apart by one over columns: CREATE UNIQUE INDEX ON ....';
    ELSIF keys IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key', relation
            USING ERRCODE = 'invalid_table_definition',
                  HINT = 'The rows found are told apart by it: ALTER TABLE ... ADD PRIMARY KEY.';
    END IF;

    SELECT n.nspname INTO extension_schema
      FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
     WHERE e.extname = 'vector';
    storage := format('%I.%I', extension_schema, type_name);

    metric := CASE lower(wanted_metric) WHEN 'ip' THEN 'inner_product' WHEN 'euclidean' THEN 'l2'
                                        WHEN 'manhattan' THEN 'l1'
                                        ELSE lower(wanted_metric) END;
    IF metric IS NULL THEN
        -- Not pgembed.embedding_columns, which looks at the tables of all columns.
        SELECT r.facts ->> 'metric' INTO metric
          FROM pgembed.index_comments AS i
         CROSS JOIN LATERAL pgembed.read_registration(i.comment) AS r
         WHERE (i.relation = vector_column.relation AND r.facts ->> 'column' = vector_column.vector_column
                OR vector_column.vector_column = 'embedding' -- of the parts of a text, registered with the text
                   AND r.facts -> 'parts' ->> 'table'
                       = (SELECT c.relname FROM pg_class AS c WHERE c.oid = vector_column.relation)
                   AND i.relation IN (SELECT k.confrelid FROM pg_constraint AS k
                                       WHERE k.conrelid = vector_column.relation AND k.contype = 'f'))
           AND pgembed.distrust(i.relation) IS NULL
         ORDER BY i.index
         LIMIT 1;
    END IF;
    FOR candidate IN SELECT * FROM pgembed.vector_indexes(relation, vector_column) LOOP
        metric := coalesce(metric, candidate.metric, 'cosine');
        IF coalesce(candidate.metric, metric) = metric THEN
            method := candidate.method;
            lists := candidate.lists;
            indexed := candidate.indexed;
            index_op := candidate.op;
            oversample := candidate.oversample;
            EXIT;
        END IF;
    END LOOP;
    metric := coalesce(metric, 'cosine');

    op := CASE metric WHEN 'cosine' THEN '<=>' WHEN 'l2' THEN '<->' WHEN 'inner_product' THEN '<#>'
                      WHEN 'l1' THEN '<+>' END;
    IF op IS NULL THEN
        RAISE EXCEPTION 'there is no metric %', quote_literal(wanted_metric)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'There are cosine, l2, inner_product and l1.';
    END IF;
    op := format('OPERATOR(%I.%s)', extension_schema, op);
END
$$;
COMMENT ON FUNCTION pgembed.vector_column IS
    'how a vector column is searched: metric and operator (of its embedding, else of its index), key, index';

-- Distance to score and back, as in pgembed/metrics.py.
CREATE OR REPLACE FUNCTION pgembed.score(metric text, distance double precision)
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN metric = 'cosine' THEN 1 - distance
            WHEN metric IN ('l2', 'l1') THEN 1 / (1 + distance)
            ELSE -distance END;

CREATE OR REPLACE FUNCTION pgembed.distance(metric text, score double precision)
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN metric = 'cosine' THEN 1 - score
            WHEN metric IN ('l2', 'l1') THEN 1 / score - 1
            ELSE -score END;
