-- What the search functions have to know of a column. The functions that follow do by name what the helpers
-- of pgembed.queries do by column objects. All of them run with the rights of the caller. Their search_path
-- is pinned, and pgvector's operators and types are named with the schema where the extension lives when the
-- function is called. Settings that they need (hnsw.ef_search, ...) are put back before they return.

CREATE OR REPLACE FUNCTION pgembed.vector_column(
    relation regclass,
    vector_column name,
    wanted_metric text DEFAULT NULL,
    OUT metric text,        -- 'cosine', 'l2', 'inner_product' or 'l1'
    OUT op text,            -- the operator of its distance, qualified
    OUT storage text,       -- the column's type, qualified
    OUT dimensions integer, -- NULL where the column takes any number
    OUT keys name[],        -- the columns of the primary key
    OUT method text,        -- 'hnsw' or 'ivfflat', where a valid index serves the metric
    OUT lists integer       -- of an ivfflat index
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    extension_schema name;
    type_name name;
    number smallint;
    served text[];
    candidate record;
BEGIN
    IF relation IS NULL OR vector_column IS NULL THEN
        RAISE EXCEPTION 'table and vector column must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;

    SELECT a.attnum, t.typname, nullif(a.atttypmod, -1)
      INTO number, type_name, dimensions
      FROM pg_attribute AS a
      JOIN pg_type AS t ON t.oid = a.atttypid
     WHERE a.attrelid = relation AND a.attname = vector_column AND a.attnum > 0 AND NOT a.attisdropped;
    IF number IS NULL THEN
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
      FROM pg_index AS i
     CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
      JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts;
    IF keys IS NULL THEN
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
        SELECT e.metric INTO metric
          FROM pgembed.embedding_columns AS e
         WHERE e.relation = vector_column.relation AND e.column_name = vector_column.vector_column;
    END IF;
    FOR candidate IN
        SELECT m.amname,
               CASE o.opcname
                   WHEN type_name || '_cosine_ops' THEN 'cosine'
                   WHEN type_name || '_l2_ops' THEN 'l2'
                   WHEN type_name || '_ip_ops' THEN 'inner_product'
                   WHEN type_name || '_l1_ops' THEN 'l1'
               END AS serves,
               (SELECT option_value::integer FROM pg_options_to_table(c.reloptions)
                 WHERE option_name = 'lists') AS lists
          FROM pg_index AS i
          JOIN pg_class AS c ON c.oid = i.indexrelid
          JOIN pg_am AS m ON m.oid = c.relam
          JOIN pg_opclass AS o ON o.oid = i.indclass[0]
         WHERE i.indrelid = relation AND i.indkey[0] = number AND i.indisvalid AND i.indpred IS NULL
           AND m.amname IN ('hnsw', 'ivfflat')
         ORDER BY m.amname, i.indexrelid
    LOOP
        metric := coalesce(metric, candidate.serves);
        IF candidate.serves = metric THEN
            method := candidate.amname;
            lists := coalesce(candidate.lists, 100);
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

-- Ask for as thorough a search of an index as so many rows need. Returns the settings as they were, for the
-- caller to put back: what set_config sets would otherwise last until the end of the transaction.
CREATE OR REPLACE FUNCTION pgembed.ask_for(method text, lists integer, row_count integer)
RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text;
    value integer;
    before jsonb;
BEGIN
    IF method IS NULL THEN
        RETURN '{}';
    ELSIF method = 'hnsw' THEN
        name := 'hnsw.ef_search';
        value := least(greatest(2 * row_count::bigint, 40), 1000);
    ELSE
        name := 'ivfflat.probes';
        value := ceil(sqrt(lists));
    END IF;
    before := jsonb_build_object(name, current_setting(name),
                                 method || '.iterative_scan', current_setting(method || '.iterative_scan'));
    PERFORM set_config(name, greatest(current_setting(name)::integer, value)::text, true),
            set_config(method || '.iterative_scan',
                       CASE method WHEN 'hnsw' THEN 'strict_order' ELSE 'relaxed_order' END, true);
    RETURN before;
END
$$;

CREATE OR REPLACE FUNCTION pgembed.put_back(settings jsonb)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config(s.key, s.value, true) FROM jsonb_each_text(settings) AS s;
END
$$;
