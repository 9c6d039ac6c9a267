-- Whose tables count. A registration is a comment, which every owner of a table can write; and whoever reads
-- a table runs what its owner has put there: functions in the predicates of its indexes (while a query is
-- planned), triggers, policies. So pgembed leaves alone what belongs to anybody who is not trusted: the
-- owner of this schema, superusers, the role that asks, and those named here.
CREATE TABLE IF NOT EXISTS pgembed.trusted_owner (
    role name PRIMARY KEY,
    trusted_by name NOT NULL DEFAULT current_user,
    trusted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE pgembed.trusted_owner IS 'roles whose tables are counted and filled (pgembed init --trust)';
-- It says nothing secret, and everybody who asks for the status of a column asks it.
GRANT SELECT ON pgembed.trusted_owner TO PUBLIC;

CREATE OR REPLACE FUNCTION pgembed.is_trusted(role oid)
RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The owner of schema public is a role that means the owner of the database.
    IF role = to_regrole('pg_database_owner') THEN
        SELECT d.datdba INTO role FROM pg_database AS d WHERE d.datname = current_database();
    END IF;
    RETURN EXISTS (
        SELECT FROM pg_roles AS r
         WHERE r.oid = role
           AND (r.rolsuper
                OR r.rolname = current_user
                OR r.oid = (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'pgembed')
                OR EXISTS (SELECT FROM pgembed.trusted_owner AS t WHERE t.role = r.rolname)));
END
$$;
COMMENT ON FUNCTION pgembed.is_trusted IS 'whether tables of this role are counted and filled for the current role';

-- Asked before any statement that names the table: planning one runs what its owner has put there. The owner
-- of a schema can replace any table in it; partitions and children are read and
-- written with their parent; triggers can be made by whoever was granted TRIGGER.
CREATE OR REPLACE FUNCTION pgembed.distrust(relation oid)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    WITH RECURSIVE tree AS (
        SELECT distrust.relation AS relid
        UNION
        SELECT h.inhrelid FROM pg_inherits AS h JOIN tree AS t ON t.relid = h.inhparent
    ), concerned AS (
        SELECT 1 AS rank, c.relowner AS role, CASE WHEN c.oid = distrust.relation THEN 'owner %s'
                                                   ELSE 'owner %s of ' || c.oid::regclass END AS what
          FROM tree AS t JOIN pg_class AS c ON c.oid = t.relid
        UNION ALL
        SELECT 2, n.nspowner, 'owner %s of schema ' || quote_ident(n.nspname)
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid = distrust.relation
        UNION ALL
        SELECT 3, p.proowner, 'owner %s of trigger ' || quote_ident(g.tgname)
          FROM tree AS t
          JOIN pg_trigger AS g ON g.tgrelid = t.relid AND NOT g.tgisinternal
          JOIN pg_proc AS p ON p.oid = g.tgfoid
    ), roles AS MATERIALIZED (
        SELECT asked.role, pgembed.is_trusted(asked.role) AS trusted
          FROM (SELECT DISTINCT role FROM concerned) AS asked
    )
    SELECT format(c.what || ' is not trusted: pgembed init --trust %s',
                  '"' || named.role || '"',
                  CASE WHEN named.role ~ '^[A-Za-z0-9_.-]+$' THEN named.role
                       ELSE '''' || replace(named.role, '''', '''\''''') || '''' END)
      INTO problem
      FROM concerned AS c
      JOIN roles AS r ON r.role = c.role AND NOT r.trusted
      LEFT JOIN pg_database AS d ON d.datname = current_database() AND c.role = to_regrole('pg_database_owner')
     CROSS JOIN LATERAL (SELECT pg_get_userbyid(coalesce(d.datdba, c.role))::text AS role) AS named
     ORDER BY c.rank, c.what
     LIMIT 1;
    RETURN problem;
END
$$;
COMMENT ON FUNCTION pgembed.distrust IS 'why pgembed leaves a table alone; NULL where it does not';
