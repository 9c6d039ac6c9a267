-- The schema of pgembed's SQL objects, and the one row that says which revision of them is installed.
CREATE SCHEMA IF NOT EXISTS pgembed;

CREATE TABLE IF NOT EXISTS pgembed.version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision integer NOT NULL,
    checksum text NOT NULL,
    installed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE pgembed.version IS 'the installed revision of pgembed''s SQL objects';
