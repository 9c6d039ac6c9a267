"""Queries as statements: every helper takes columns and expressions, and returns a ``Select``.

============================  =============================================================================
file                          what it is for
============================  =============================================================================
search                        ``semantic_search``
many, asked                   ``search_many``, and its queries as rows
boosts, groups                ``decay``, ``boost=`` and ``per=`` of ``semantic_search``
diversity                     ``diversify``
counts                        ``count_within``, ``facets``
recommendation, examples      ``recommend``, and what it is given
reranking                     ``rerank``, ``arerank``: the rows of a search, scored by a cross-encoder
highlights                    ``passages``, ``apassages``: the sentences nearest to a query
reading                       rows with a text of each, which the two above read
sums                          ``vector_of``: sums of vectors as a query
hybrid, fusion                ``hybrid_search``, and how its searches are fused
keywords                      ``keyword_search``
fulltext, bm25                rows by their words: by ``ts_rank``, and by BM25 where words are declared
explanation                   ``explain_search``, ``aexplain_search``: how a search was executed
executed_plan                 what its plan tells of that
classify                      ``knn_classify``, ``knn_classify_many``
neighbourhoods                ``label_issues``, ``outliers``, ``representatives``
prototypes                    ``zero_shot``, ``centroid_classify``: one vector for each label
votes                         what neighbours' votes weigh, ``softmax``; the label that wins, or why none does
duplicates                    ``near_duplicates``, ``duplicates_of``, ``duplicate_groups``, ``mine_pairs``
keeping, negatives            ``keep_list``; ``hard_negatives``
matching                      ``match``: two lists of the same things
merging                       ``merge_duplicates``
clusters                      ``cluster``, ``topics``
thresholds                    ``suggest_threshold``
edges                         pairs searched for, or stored before: ``rethreshold``
pairs, numbering, components  pairs of near rows, over row numbers; the groups that they make
subject, vectors              what is searched, and what for: a text, a vector, a row
owners, surroundings          whose parts are searched; the text around a part
arguments                     what the arguments of the helpers may be
nearest                       the nearest rows as a subquery, exact or through an index
eligibility                   which declared index can be used
settings                      pgvector's search settings, asked for within the statement
statement                     selects that refuse late clauses; rows joined back to what the caller selects
templates                     statements that are built once, and come again with other values
============================  =============================================================================
"""

from pgembed.queries.boosts import decay
from pgembed.queries.classify import knn_classify, knn_classify_many
from pgembed.queries.clusters import cluster, topics
from pgembed.queries.counts import count_within, facets
from pgembed.queries.diversity import diversify
from pgembed.queries.duplicates import duplicate_groups, duplicates_of, mine_pairs, near_duplicates
from pgembed.queries.edges import rethreshold
from pgembed.queries.explanation import SearchExplanation, SearchLeg, aexplain_search, explain_search
from pgembed.queries.highlights import Passage, apassages, passages
from pgembed.queries.hybrid import hybrid_search
from pgembed.queries.keeping import keep_list
from pgembed.queries.keywords import keyword_search
from pgembed.queries.many import search_many
from pgembed.queries.matching import match
from pgembed.queries.merging import Merged, merge_duplicates
from pgembed.queries.negatives import hard_negatives
from pgembed.queries.neighbourhoods import label_issues, outliers, representatives
from pgembed.queries.prototypes import centroid_classify, zero_shot
from pgembed.queries.recommendation import recommend
from pgembed.queries.reranking import arerank, rerank
from pgembed.queries.search import semantic_search
from pgembed.queries.sums import vector_of
from pgembed.queries.thresholds import Threshold, suggest_threshold
from pgembed.queries.votes import softmax

__all__ = [
    "Merged",
    "Passage",
    "SearchExplanation",
    "SearchLeg",
    "Threshold",
    "aexplain_search",
    "apassages",
    "arerank",
    "centroid_classify",
    "cluster",
    "count_within",
    "decay",
    "diversify",
    "duplicate_groups",
    "duplicates_of",
    "explain_search",
    "facets",
    "hard_negatives",
    "hybrid_search",
    "keep_list",
    "keyword_search",
    "knn_classify",
    "knn_classify_many",
    "label_issues",
    "match",
    "merge_duplicates",
    "mine_pairs",
    "near_duplicates",
    "outliers",
    "passages",
    "recommend",
    "representatives",
    "rerank",
    "rethreshold",
    "search_many",
    "semantic_search",
    "softmax",
    "suggest_threshold",
    "topics",
    "vector_of",
    "zero_shot",
]
