-- What workers know of each other (leases), and what they could not encode (failures). The rows that are to
-- be filled are recorded nowhere: they are the rows that satisfy their column's pending predicate.
--
-- A column is identified by its table as regclass, and by its name. The table is thus followed through
-- renames, changes of schema and pg_upgrade; a dump carries its name, so a restored row finds the restored
-- table, whatever its number there. A dropped table leaves a number without a table, a dropped or renamed
-- column a name without a column; workers delete such rows (pgembed.filling.failures.clean), and the rows of
-- a renamed column get a new chance. A row is identified by its primary key as the text of a JSON array.

-- One row for each batch that a worker has claimed; the others leave its keys alone until it expires. Unlogged: it
-- vanishes in a crash of the server, which is right, because its workers have lost their connections too.
CREATE UNLOGGED TABLE IF NOT EXISTS pgembed.lease (
    id uuid PRIMARY KEY,
    worker text NOT NULL,
    relation regclass NOT NULL,
    column_name name NOT NULL,
    keys text[] NOT NULL,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE pgembed.lease IS 'the rows that workers have claimed, each until it expires';

-- The rows that failed alone, and with which text: another text has another digest, and so a new chance at
-- once. The same text is tried again at next_attempt_at.
CREATE TABLE IF NOT EXISTS pgembed.failure (
    relation regclass NOT NULL,
    column_name name NOT NULL,
    key text NOT NULL,
    digest uuid,
    error text NOT NULL,
    attempts integer NOT NULL,
    first_failed_at timestamptz NOT NULL,
    last_failed_at timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    PRIMARY KEY (relation, column_name, key)
);
COMMENT ON TABLE pgembed.failure IS 'the rows that could not be filled, with the error, and when they are tried again';

-- For triggers that users may want: workers that listen (pgembed worker --listen) then look at once. None is
-- made by default, because transactions that notify commit one after the other.
CREATE OR REPLACE FUNCTION pgembed.notify_workers()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('pgembed', '');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION pgembed.notify_workers IS 'a statement trigger that wakes workers at commit';
