-- What the catalogue says of indexes, for the functions that ask. (In Python: pgembed/indexes/standing.py.)

-- The indexes that hold a column, by itself or in an expression.
CREATE OR REPLACE VIEW pgembed.column_indexes AS
SELECT i.indrelid AS relation,
       a.attname AS column_name,
       i.indexrelid AS index,
       m.amname AS method,
       i.indclass[0] AS opclass,
       c.reloptions AS options,
       CASE i.indkey[0] WHEN 0 THEN pg_catalog.pg_get_expr(i.indexprs, i.indrelid) END AS expression,
       i.indpred IS NOT NULL AS partial,
       i.indisvalid AS valid
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum > 0
 WHERE a.attnum = ANY (i.indkey)
    OR i.indkey[0] = 0 AND EXISTS (
           SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid
              AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum);
COMMENT ON VIEW pgembed.column_indexes IS 'the indexes of each column, those on expressions over it too';
-- Like the catalogue that it reads; searches ask it with the rights of whoever asks.
GRANT SELECT ON pgembed.column_indexes TO PUBLIC;

-- The comments of partial indexes, among which are the registrations of embedding columns.
CREATE OR REPLACE VIEW pgembed.index_comments AS
SELECT i.indrelid AS relation, i.indexrelid AS index, d.description AS comment
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_description AS d
    ON d.objoid = i.indexrelid AND d.objsubid = 0 AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
 WHERE i.indpred IS NOT NULL;
COMMENT ON VIEW pgembed.index_comments IS 'the comments of partial indexes, whoever wrote them';
GRANT SELECT ON pgembed.index_comments TO PUBLIC;
