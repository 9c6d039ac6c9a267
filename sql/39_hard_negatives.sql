-- Answers that are near a question and not right, as in pgembed/queries/duplicates/negatives.py. Which are right, a
-- foreign key says: columns of the question, or of a table of links, that hold the key of the answer. No row is an
-- answer to itself.
CREATE OR REPLACE FUNCTION pgembed.hard_negatives(
    question regclass,
    question_column name,
    answer regclass,
    answer_column name,
    positive name[],                   -- for each column of the answer's key, that of the question or the link
    link regclass DEFAULT NULL,
    link_question name[] DEFAULT NULL, -- for each column of the question's key, that of the link
    k integer DEFAULT 5,
    max_score double precision DEFAULT NULL,
    margin double precision DEFAULT NULL,
    exact boolean DEFAULT false
)
RETURNS TABLE (question_key jsonb, answer_key jsonb, score double precision, positive_score double precision,
               rank bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record := pgembed.vector_column(answer, answer_column);
    asking record := pgembed.vector_column(question, question_column, target.metric);
    bearer regclass := coalesce(link, question); -- of the columns that hold the answer's key
    asked name[] := CASE WHEN link IS NULL THEN asking.keys ELSE link_question END;
    row_score text := format('pgembed.score(%L, t.%I %s $1::%s)', target.metric, answer_column, target.op, target.storage);
    wrong text; -- of a row a that is asked, what holds for answers t that are not right, as SQL that gives it
BEGIN
    IF cardinality(positive) IS DISTINCT FROM cardinality(target.keys)
       OR link IS NOT NULL AND cardinality(link_question) IS DISTINCT FROM cardinality(asking.keys)
       OR link IS NULL AND link_question IS NOT NULL THEN
        RAISE EXCEPTION 'positive is %, link_question is %, of the table %', coalesce(positive::text, 'NULL'),
            coalesce(link_question::text, 'NULL'), bearer
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('They must name its columns for the key (%s) of table %s, and for a link those for '
                                'the key (%s) of table %s.', array_to_string(target.keys, ', '), answer,
                                array_to_string(asking.keys, ', '), question);
    ELSIF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k is %, it must be at least 1', coalesce(k::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF margin IN ('NaN', 'Infinity', '-Infinity') THEN
        RAISE EXCEPTION 'margin is %, it must be a number', margin USING ERRCODE = 'invalid_parameter_value';
    ELSIF max_score IS NOT NULL THEN
        PERFORM pgembed.check_score('max_score', max_score, target.metric);
    END IF;
    PERFORM pgembed.column_value(bearer, name) FROM unnest(positive || link_question) AS name;

    SELECT format('%L || quote_literal(a.key) || %L',
                  format('(%s) NOT IN (SELECT %s FROM %s AS l CROSS JOIN jsonb_to_record(',
                         (SELECT string_agg(format('t.%I', name), ', ') FROM unnest(target.keys) AS name),
                         string_agg(format('l.%I', name), ', '), bearer),
                  format('::jsonb) AS r (%s) WHERE %s AND %s)',
                         pgembed.key_definition(question, asking.keys),
                         (SELECT string_agg(format('l.%I = r.%I', pair.asked, pair.key), ' AND ')
                            FROM unnest(asked, asking.keys) AS pair (asked, key)),
                         string_agg(format('l.%I IS NOT NULL', name), ' AND ')))
           || CASE WHEN question <> answer THEN ''
                   ELSE format(' || %L || quote_literal(a.key) || %L',
                               format(' AND jsonb_build_object(%s) <> ',
                                      (SELECT string_agg(format('%1$L, t.%1$I', key), ', ')
                                         FROM unnest(target.keys) AS key)),
                               '::jsonb') END
           || CASE WHEN max_score IS NULL THEN ''
                   ELSE format(' || %L', format(' AND %s <= %L', row_score, max_score)) END
           || CASE WHEN margin IS NULL THEN ''
                   ELSE format(' || %L || quote_literal(pgembed.score(%L, a.positive) - %L)',
                               format(' AND %s <= ', row_score), target.metric, margin) END
      INTO wrong
      FROM unnest(positive) AS name;
    RETURN QUERY EXECUTE (
        SELECT format(
                   $query$
                   WITH rights AS (
                       SELECT %1$s, min(t.%2$I %3$s q.%4$I::%5$s) AS positive
                         FROM %6$s AS q JOIN %7$s AS l ON %8$s JOIN %9$s AS t ON %10$s
                        WHERE t.%2$I IS NOT NULL AND %18$s
                        GROUP BY %1$s
                   ), asked AS MATERIALIZED (
                       SELECT row_number() OVER (ORDER BY %1$s) AS n, jsonb_build_object(%11$s) AS key,
                              q.%4$I AS vector, r.positive
                         FROM %6$s AS q JOIN rights AS r ON %12$s
                        WHERE r.positive < 'NaN'
                   )
                   SELECT a.key, n.key, n.score, pgembed.score(%13$L, a.positive), n.place
                     FROM asked AS a
                    CROSS JOIN LATERAL pgembed.nearest(%9$L, %2$L, a.vector::%17$s, %14$s, %13$L,
                                                       %15$L, NULL, %16$s)
                          WITH ORDINALITY AS n (key, distance, score, extra, place)
                    ORDER BY a.n, n.place
                   $query$,
                   string_agg(format('q.%I', pair.key), ', '), answer_column, target.op, question_column, target.storage,
                   question, bearer, string_agg(format('l.%I = q.%I', pair.asked, pair.key), ' AND '), answer,
                   (SELECT string_agg(format('t.%I = l.%I', pair.key, pair.name), ' AND ')
                      FROM unnest(target.keys, positive) AS pair (key, name)),
                   string_agg(format('%1$L, q.%1$I', pair.key), ', '),
                   string_agg(format('r.%1$I = q.%1$I', pair.key), ' AND '),
                   target.metric, k, exact, wrong, $type$@extschema:vector@.vector$type$,
                   CASE WHEN question = answer
                        THEN format('NOT (%s)', string_agg(format('t.%1$I = q.%1$I', pair.key), ' AND ')) ELSE 'true' END)
          FROM unnest(asked, asking.keys) AS pair (asked, key));
END
$$;
COMMENT ON FUNCTION pgembed.hard_negatives IS
    'the answers nearest to each question that are not right, to train an encoder with';
