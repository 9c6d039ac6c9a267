-- What the search functions have to know of indexes. The functions that follow do by name what the helpers
-- of pgembed.queries do by column objects. All of them run with the rights of the caller. Their search_path
-- is pinned, and pgvector's operators and types are named with the schema where the extension lives when the
-- function is called. Settings that they need (hnsw.ef_search, ...) are put back before they return. A name in
-- capitals between two @ stands for the value that it has in pgembed/constants.py.

-- Functions whose arguments or columns changed cannot be replaced. (Those that call them do not depend on them.)
DROP FUNCTION IF EXISTS
    pgembed.vector_column(regclass, name, text),
    pgembed.pairs_query(regclass, name, double precision, text, integer, boolean),
    pgembed.pairs_query(regclass, name, double precision, text, integer, boolean, name, boolean),
    pgembed.near_duplicates(regclass, name, double precision, text, integer, boolean),
    pgembed.duplicate_groups(regclass, name, double precision, text, integer, boolean),
    pgembed.keep_list(regclass, name, double precision, name, boolean, text, integer, boolean),
    pgembed.ask_for(text, integer, integer),
    pgembed.nearest(regclass, name, @extschema:vector@.vector, integer, text, boolean, name);

-- The expressions are those of pgembed/indexes/indexed.py (quantize=, dimensions=), as Postgres writes them:
-- under this search_path, with the schema of whatever pgvector has.
CREATE OR REPLACE FUNCTION pgembed.vector_indexes(
    relation regclass,
    vector_column name,
    OUT metric text,       -- NULL for the bits of vectors, which give candidates for any metric
    OUT method text,       -- 'hnsw' or 'ivfflat'
    OUT lists integer,     -- of an ivfflat index
    OUT indexed text,      -- the column, or an expression over it
    OUT op text,           -- the operator of the distance between what is indexed, qualified
    OUT oversample integer -- candidates to compare again for each row asked for; 1 for whole vectors
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE -- one in SQL is planned anew by each call before Postgres 18, for milliseconds
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    WITH standing AS (
        SELECT i.index,
               i.method,
               (SELECT stated.option_value::integer FROM pg_options_to_table(i.options) AS stated
                 WHERE stated.option_name = 'lists') AS lists,
               quote_ident(vector_column) AS col,
               i.expression,
               t.typname AS storage,
               format_type(held.atttypid, held.atttypmod) AS shape,
               held.atttypmod AS length,
               o.oprname,
               quote_ident(n.nspname) AS ext
          FROM pgembed.column_indexes AS i
          JOIN pg_attribute AS held ON held.attrelid = i.index AND held.attnum = 1
          JOIN pg_type AS t ON t.oid = held.atttypid
          JOIN pg_opclass AS k ON k.oid = i.opclass
          JOIN pg_amop AS p ON p.amopfamily = k.opcfamily AND p.amoppurpose = 'o'
          JOIN pg_operator AS o ON o.oid = p.amopopr
          JOIN pg_namespace AS n ON n.oid = o.oprnamespace
         WHERE i.relation = vector_indexes.relation AND i.column_name = vector_column
           AND i.valid AND NOT i.partial AND i.method IN ('hnsw', 'ivfflat')
    )
    SELECT known.metric,
           s.method::text,
           CASE s.method WHEN 'ivfflat' THEN coalesce(s.lists, @LISTS_DEFAULT@) END,
           coalesce(s.expression, s.col),
           format('OPERATOR(%s.%s)', s.ext, s.oprname),
           CASE WHEN s.expression IS NULL THEN 1
                WHEN s.storage = 'halfvec' THEN @OVERSAMPLE.halfvec@
                WHEN s.storage = 'bit' THEN @OVERSAMPLE.bit@
                ELSE @OVERSAMPLE.vector@ END AS candidates
      FROM standing AS s
      JOIN (VALUES ('<=>', 'cosine'), ('<->', 'l2'), ('<#>', 'inner_product'), ('<+>', 'l1'), ('<~>', NULL))
        AS known (operator, metric) ON known.operator = s.oprname
     WHERE s.expression IS NULL
        OR s.expression IN (
               format('(%s)::%s', s.col, s.shape),
               format('(%s.binary_quantize(%s))::%s', s.ext, s.col, s.shape),
               format('(%s.subvector(%s, 1, %s))::%s', s.ext, s.col, s.length, s.shape),
               format('(%s.binary_quantize(%1$s.subvector(%s, 1, %s)))::%s', s.ext, s.col, s.length, s.shape))
     ORDER BY candidates, s.method, s.index;
END
$$;
COMMENT ON FUNCTION pgembed.vector_indexes IS
    'the valid indexes of all rows that a search of a vector column can use, those that lose least first';

-- Make searches of an index thorough enough for this number of rows. Any search is kept from being compiled (jit):
-- distances gain nothing by it, and the cost of an exact scan that is seldom made would decide. Returns the settings
-- as they were, for the caller to put back: what set_config sets would otherwise last until the end of the transaction.
CREATE OR REPLACE FUNCTION pgembed.ask_for(method text, lists integer, oversample integer, row_count integer)
RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text;
    value integer;
    before jsonb := jsonb_build_object('jit', current_setting('jit'));
BEGIN
    PERFORM set_config('jit', 'off', true);
    IF method IS NULL THEN
        RETURN before;
    ELSIF method = 'hnsw' THEN
        name := 'hnsw.ef_search';
        value := least(greatest(row_count::bigint * greatest(oversample, @EF_SEARCH_PER_ROW@), @EF_SEARCH_FLOOR@),
                       @EF_SEARCH.most@);
    ELSE
        name := 'ivfflat.probes';
        value := ceil(sqrt(lists));
    END IF;
    before := before || jsonb_build_object(name, current_setting(name), method || '.iterative_scan',
                                           current_setting(method || '.iterative_scan'));
    PERFORM set_config(name, greatest(current_setting(name)::integer, value)::text, true),
            set_config(method || '.iterative_scan',
                       CASE method WHEN 'hnsw' THEN '@ITERATIVE_SCAN.hnsw@'
                                   ELSE '@ITERATIVE_SCAN.ivfflat@' END, true);
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
