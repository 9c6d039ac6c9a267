-- The rows that are dropped where of two near rows the second is dropped if the first is kept, as an array. The
-- pairs come as two arrays, sorted by the first row, which is the smaller number: when a pair's turn comes, all
-- pairs that could drop its first row have had theirs.
CREATE OR REPLACE FUNCTION pgembed.dropped(lefts integer[], rights integer[])
RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_dropped boolean[] := array_fill(false, ARRAY[(SELECT coalesce(max(n), 0) FROM unnest(rights) AS n)]);
BEGIN
    FOR i IN 1 .. coalesce(cardinality(lefts), 0) LOOP
        IF NOT is_dropped[lefts[i]] THEN
            is_dropped[rights[i]] := true;
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT n::integer FROM unnest(is_dropped) WITH ORDINALITY AS d (yes, n) WHERE yes ORDER BY n);
END
$$;
