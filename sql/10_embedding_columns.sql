-- Every embedding column of the database, read from the catalogue: the comment on the index of a column's
-- pending rows is its registration. It comes with the table (create_all, dump and restore, a rename of the
-- table) and goes with it, so there is no list that could disagree with the tables. Anybody can write such a
-- comment on an index of their own, so it is read strictly, and counts only where its table is trusted.

-- What is wrong with the facts of a registration; NULL where nothing is. Keys that are not known here are of
-- newer versions, and no fault. The same as pgembed.columns.registration in Python.
CREATE OR REPLACE FUNCTION pgembed.registration_problem(facts jsonb)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind text;
    key text;
    names text[];
    sources text[];
    fields text[];
    links text[];
    template text;
    bare text;
    longest integer;
BEGIN
    IF facts ->> 'pgembed' IS DISTINCT FROM '1' OR jsonb_typeof(facts -> 'pgembed') <> 'number' THEN
        RETURN 'pgembed is not 1, the format that this version reads';
    END IF;
    FOREACH key IN ARRAY ARRAY['column', 'digest', 'encoder', 'fingerprint', 'metric', 'fill'] LOOP
        IF coalesce(jsonb_typeof(facts -> key), '') <> 'string' THEN
            RETURN key || ' is not a text';
        END IF;
    END LOOP;
    FOREACH key IN ARRAY ARRAY['template', 'replaces'] LOOP
        IF coalesce(jsonb_typeof(facts -> key), 'null') NOT IN ('null', 'string') THEN
            RETURN key || ' is not a text';
        END IF;
    END LOOP;
    FOREACH key IN ARRAY ARRAY['sources', 'fields', 'duplicate_of'] LOOP
        kind := coalesce(jsonb_typeof(facts -> key), 'null');
        IF kind = 'null' AND key <> 'sources' THEN
            CONTINUE;
        ELSIF kind <> 'array' THEN
            RETURN key || ' is not a list of names';
        ELSIF EXISTS (SELECT FROM jsonb_array_elements(facts -> key) AS e (one)
                       WHERE jsonb_typeof(e.one) <> 'string') THEN
            RETURN key || ' is not a list of names';
        END IF;
        names := ARRAY(SELECT jsonb_array_elements_text(facts -> key));
        IF cardinality(names) = 0 THEN
            RETURN key || ' is an empty list';
        ELSIF cardinality(names) > (SELECT count(DISTINCT n.one) FROM unnest(names) AS n (one)) THEN
            RETURN key || ' has a name twice';
        ELSIF key = 'sources' THEN
            sources := names;
        ELSIF key = 'fields' THEN
            fields := names;
        ELSE
            links := names;
        END IF;
    END LOOP;
    IF EXISTS (SELECT FROM unnest(sources || ARRAY[facts ->> 'column', facts ->> 'digest']
                                  || (facts ->> 'replaces') || links) AS n (one)
                WHERE octet_length(n.one) NOT BETWEEN 1 AND 63) THEN
        RETURN 'the name of a column is not of 1 to 63 bytes';
    ELSIF cardinality(sources || links) + 2 > (SELECT count(DISTINCT n.one) FROM unnest(
              sources || links || ARRAY[facts ->> 'column', facts ->> 'digest']) AS n (one)) THEN
        RETURN 'column, digest and sources are not different columns';
    ELSIF cardinality(fields) <> cardinality(sources) THEN
        RETURN 'fields are not as many as sources';
    ELSIF facts ->> 'encoder' !~ '^[^\x01-\x1f\x7f]{1,255}$' THEN
        RETURN 'encoder is not a line of 1 to 255 characters';
    ELSIF facts ->> 'fingerprint' !~ '^[^\x01-\x1f\x7f]{1,255}$' THEN
        RETURN 'fingerprint is not a line of 1 to 255 characters';
    ELSIF jsonb_typeof(facts -> 'dimensions') IS DISTINCT FROM 'number'
       OR facts ->> 'dimensions' !~ '^[1-9][0-9]{0,4}$' OR (facts ->> 'dimensions')::integer > @MAX_DIMENSIONS.vector@ THEN
        RETURN 'dimensions is not a whole number from 1 to @MAX_DIMENSIONS.vector@';
    ELSIF facts ->> 'metric' NOT IN ('cosine', 'l2', 'inner_product', 'l1') THEN
        RETURN 'metric is not cosine, l2, inner_product or l1';
    ELSIF facts ->> 'fill' NOT IN ('flush', 'worker') THEN
        RETURN 'fill is not flush or worker';
    ELSIF coalesce(jsonb_typeof(facts -> 'options'), 'null') NOT IN ('null', 'object') THEN
        RETURN 'options is not an object';
    END IF;
    FOREACH key IN ARRAY ARRAY['max_tokens', 'query_prompt', 'document_prompt', 'precision'] LOOP
        kind := CASE key WHEN 'max_tokens' THEN 'number' ELSE 'text' END;
        IF replace(jsonb_typeof(facts -> 'options' -> key), 'string', 'text') <> kind THEN
            RETURN format('the option %s of the encoder is not a %s', key, kind);
        END IF;
    END LOOP;
    kind := coalesce(jsonb_typeof(facts -> 'words'), 'null');
    IF kind NOT IN ('null', 'object') THEN
        RETURN 'words is not an object';
    ELSIF kind = 'object' THEN
        FOREACH key IN ARRAY ARRAY['column', 'statistics', 'config'] LOOP
            longest := CASE key WHEN 'config' THEN 255 ELSE 63 END;
            IF jsonb_typeof(facts -> 'words' -> key) IS DISTINCT FROM 'string'
               OR octet_length(facts -> 'words' ->> key) NOT BETWEEN 1 AND longest THEN
                RETURN format('%s of words is not a text of 1 to %s bytes', key, longest);
            END IF;
        END LOOP;
        FOREACH key IN ARRAY ARRAY['k1', 'b'] LOOP
            longest := CASE key WHEN 'k1' THEN 1000 ELSE 1 END;
            IF jsonb_typeof(facts -> 'words' -> key) IS DISTINCT FROM 'number'
               OR (facts -> 'words' -> key)::numeric NOT BETWEEN 0 AND longest THEN
                RETURN format('%s of words is not a number from 0 to %s', key, longest);
            END IF;
        END LOOP;
    END IF;
    kind := coalesce(jsonb_typeof(facts -> 'parts'), 'null');
    IF kind NOT IN ('null', 'object') THEN
        RETURN 'parts is not an object';
    ELSIF kind = 'object' THEN
        FOREACH key IN ARRAY ARRAY['table', 'how'] LOOP
            longest := CASE key WHEN 'table' THEN 63 ELSE 8192 END;
            IF jsonb_typeof(facts -> 'parts' -> key) IS DISTINCT FROM 'string'
               OR octet_length(facts -> 'parts' ->> key) NOT BETWEEN 1 AND longest THEN
                RETURN format('%s of parts is not a text of 1 to %s bytes', key, longest);
            END IF;
        END LOOP;
    END IF;
    template := facts ->> 'template';
    IF template IS NOT NULL THEN
        bare := regexp_replace(template, '\{\{|\}\}', '', 'g');
        names := ARRAY(SELECT DISTINCT m.found[1] FROM regexp_matches(bare, '\{([^{}]*)\}', 'g') AS m (found));
        fields := coalesce(fields, CASE WHEN cardinality(sources) = 1 AND cardinality(names) = 1
                                         AND names[1] ~ '^[^][!:.{}]+$' THEN names ELSE sources END);
        IF bare !~ '^([^{}]|\{[^{}]*\})*$' OR NOT (names <@ fields AND fields <@ names) THEN
            RETURN 'template does not have exactly the sources as its fields';
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- A comment as a registration. No facts and no problem: it is somebody else's.
CREATE OR REPLACE FUNCTION pgembed.read_registration(comment text, OUT facts jsonb, OUT problem text)
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF substr(comment, 1, 11) IS DISTINCT FROM '{"pgembed":' THEN
        RETURN;
    ELSIF octet_length(comment) > 65536 THEN
        problem := 'it is longer than 64 kB';
        RETURN;
    END IF;
    facts := comment::jsonb;
    problem := pgembed.registration_problem(facts);
    IF problem IS NOT NULL THEN
        facts := NULL;
    END IF;
EXCEPTION WHEN OTHERS THEN -- of many kinds: syntax, \u0000, too deep, numbers out of range
    facts := NULL;
    problem := 'it is not JSON that Postgres can read';
END
$$;

-- The fingerprint and the template as pgembed.columns.digest.recipe() hashes them: JSON in ASCII.
CREATE OR REPLACE FUNCTION pgembed.recipe(fingerprint text, template text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    json text := '["pgembed-1", ' || to_json(fingerprint)::text || ', '
                 || coalesce(to_json(template)::text, 'null') || ']';
BEGIN
    IF json ~ '[^\x01-\x7e]' THEN
        SELECT string_agg(
                   CASE WHEN code.point < 127 THEN chr(code.point)
                        WHEN code.point < 65536 THEN '\u' || lpad(to_hex(code.point), 4, '0')
                        ELSE '\u' || to_hex(55296 + (code.point - 65536) / 1024)
                             || '\u' || to_hex(56320 + (code.point - 65536) % 1024) END,
                   '' ORDER BY letter.place)
          INTO json
          FROM regexp_split_to_table(json, '') WITH ORDINALITY AS letter (one, place)
         CROSS JOIN LATERAL (SELECT ascii(letter.one) AS point) AS code;
    END IF;
    RETURN md5(json);
END
$$;

-- The predicate of a column's pending rows, made of its registration: as pgembed.columns.digest makes it, so
-- that Postgres takes it for that of the index. Parts of texts have no vector in the row; how they are made is
-- hashed together with the fingerprint.
CREATE OR REPLACE FUNCTION pgembed.pending_predicate(facts jsonb)
RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lengths text;
    parts text;
BEGIN
    SELECT string_agg(format('COALESCE(octet_length(%I), 0)', s.source), ' + ' ORDER BY s.place),
           string_agg(format(' || md5(COALESCE(%I, ''''))', s.source), '' ORDER BY s.place)
      INTO lengths, parts
      FROM jsonb_array_elements_text(facts -> 'sources') WITH ORDINALITY AS s (source, place);
    RETURN format(
        CASE WHEN jsonb_typeof(facts -> 'parts') = 'object' THEN '%2$I'
             ELSE 'CASE WHEN %1$I IS NOT NULL%6$s THEN COALESCE(%2$I, ''00000000-0000-0000-0000-000000000000''::uuid) '
                  'ELSE NULL::uuid END' END
        || ' IS DISTINCT FROM CASE WHEN %3$s > 0 THEN md5(%4$L%5$s)::uuid ELSE NULL::uuid END',
        facts ->> 'column', facts ->> 'digest', lengths,
        pgembed.recipe(concat_ws(' ', facts ->> 'fingerprint', facts -> 'parts' ->> 'how'), facts ->> 'template'),
        parts,
        (SELECT ' OR ' || string_agg(format('%I IS NOT NULL', l.link), ' AND ' ORDER BY l.place)
           FROM jsonb_array_elements_text(nullif(facts -> 'duplicate_of', 'null')) WITH ORDINALITY AS l (link, place)));
END
$$;

-- Whether an index holds the rows of a predicate; NULL where its table is locked and cannot be looked at. Both
-- are compared as text, without the brackets, blanks and casts that Postgres puts in: the predicate of an
-- index is never executed as it is found.
CREATE OR REPLACE FUNCTION pgembed.is_predicate_of(index regclass, predicate text)
RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    casts text := '::("([^"]|"")*"|\w+)(\.("([^"]|"")*"|\w+))?( varying)?(\(\d+\))?|[\s()]';
    found text;
BEGIN
    SELECT pg_get_expr(i.indpred, i.indrelid) INTO found FROM pg_index AS i WHERE i.indexrelid = index;
    RETURN regexp_replace(found, casts, '', 'g') = regexp_replace(predicate, casts, '', 'g');
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;

-- All that is registered, or looks as if it were, with the reason for which it does not count.
CREATE OR REPLACE VIEW pgembed.registrations AS
WITH commented AS MATERIALIZED (
    SELECT i.index AS indexrelid, i.relation AS indrelid, t.relkind, i.comment AS description
    FROM pgembed.index_comments AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.index
    JOIN pg_catalog.pg_class AS t ON t.oid = i.relation
    WHERE NOT c.relispartition AND pg_catalog.substr(i.comment, 1, 11) = '{"pgembed":'
), read AS MATERIALIZED (
    SELECT c.indexrelid, c.indrelid, c.relkind, pgembed.distrust(c.indrelid) AS distrust, r.facts, r.problem
    FROM commented AS c
    CROSS JOIN LATERAL pgembed.read_registration(c.description) AS r
), judged AS MATERIALIZED (
    SELECT *,
           CASE WHEN distrust IS NOT NULL THEN distrust
                WHEN problem IS NOT NULL
                    THEN pg_catalog.format('the registration on index %s cannot be read: %s',
                                           indexrelid::pg_catalog.regclass, problem)
                WHEN relkind NOT IN ('r', 'p') THEN 'it is not a table, so its rows cannot be filled'
                WHEN pg_catalog.count(*) OVER (PARTITION BY indrelid, facts ->> 'column') > 1
                    THEN pg_catalog.format('its registration on index %s is not the only one',
                                           indexrelid::pg_catalog.regclass)
           END AS reason
    FROM read
)
SELECT indrelid::pg_catalog.regclass AS relation,
       (facts ->> 'column')::pg_catalog.name AS column_name,
       indexrelid::pg_catalog.regclass AS pending_index,
       CASE WHEN reason IS NULL THEN facts END AS facts,
       reason AS problem
FROM judged;
COMMENT ON VIEW pgembed.registrations IS
    'the comments of indexes that register embedding columns, and why some do not count';
-- Like the catalogue that it reads; pgembed.status asks it with the rights of whoever asks.
GRANT SELECT ON pgembed.registrations TO PUBLIC;

CREATE OR REPLACE VIEW pgembed.embedding_columns AS
SELECT relation,
       (facts ->> 'column')::pg_catalog.name AS column_name,
       (facts ->> 'digest')::pg_catalog.name AS digest_name,
       ARRAY(SELECT pg_catalog.jsonb_array_elements_text(facts -> 'sources'))::pg_catalog.name[] AS sources,
       facts ->> 'template' AS template,
       facts ->> 'encoder' AS encoder,
       facts ->> 'fingerprint' AS fingerprint,
       (facts ->> 'dimensions')::integer AS dimensions,
       facts ->> 'metric' AS metric,
       facts ->> 'fill' AS fill,
       pending_index,
       pgembed.pending_predicate(facts) COLLATE pg_catalog."C" AS pending_predicate, -- as it was made first
       CASE WHEN pg_catalog.jsonb_typeof(facts -> 'fields') = 'array'
            THEN ARRAY(SELECT pg_catalog.jsonb_array_elements_text(facts -> 'fields')) END AS fields,
       facts -> 'options' AS options,
       facts -> 'words' AS words,
       facts -> 'parts' AS parts, -- of what is no column, but the parts of the first source: their table, and how
       facts -> 'duplicate_of' AS duplicate_of -- where rows that mean the same as another name that
FROM pgembed.registrations
WHERE problem IS NULL;
COMMENT ON VIEW pgembed.embedding_columns IS
    'the embedding columns of this database; pending_predicate is the SQL condition of the rows to be filled';

-- A table that stands beside another, and is trusted as that is; NULL where there is none of that name.
CREATE OR REPLACE FUNCTION pgembed.table_beside(relation regclass, table_name name)
RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found oid;
    problem text;
BEGIN
    SELECT c.oid INTO found
      FROM pg_class AS c
     WHERE c.relnamespace = (SELECT t.relnamespace FROM pg_class AS t WHERE t.oid = relation)
       AND c.relname = table_name AND c.relkind IN ('r', 'p');
    problem := pgembed.distrust(found);
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'table %: %', found::regclass, problem USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN found;
END
$$;

-- The table of statistics of a column's words.
CREATE OR REPLACE FUNCTION pgembed.word_statistics(relation regclass, declared jsonb)
RETURNS regclass
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN pgembed.table_beside(relation, (declared ->> 'statistics')::name);

-- Of earlier versions.
DROP FUNCTION IF EXISTS pgembed.registration(text);
