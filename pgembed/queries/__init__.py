"""Queries as statements: every helper takes columns and expressions, and returns a ``Select``.

==============  ======================================================================
folder          what it is for
==============  ======================================================================
core            what every helper is built of: the nearest rows as a subquery, and what goes into it
search          searches by meaning
words           searches by words, and by both
duplicates      near-duplicates, matches, clusters
classification  labels of rows
==============  ======================================================================

Each is built of those above it.
"""

from pgembed.queries.classification.knn import knn_classify, knn_classify_many
from pgembed.queries.classification.neighbourhoods import label_issues, outliers, representatives
from pgembed.queries.classification.prototypes import centroid_classify, zero_shot
from pgembed.queries.classification.votes import softmax
from pgembed.queries.core.sums import vector_of
from pgembed.queries.duplicates.clusters import cluster, topics
from pgembed.queries.duplicates.edges import rethreshold
from pgembed.queries.duplicates.keeping import keep_list
from pgembed.queries.duplicates.matching import match
from pgembed.queries.duplicates.merging import Merged, merge_duplicates
from pgembed.queries.duplicates.near_duplicates import (
    duplicate_groups,
    duplicates_of,
    mine_pairs,
    near_duplicates,
)
from pgembed.queries.duplicates.negatives import hard_negatives
from pgembed.queries.duplicates.thresholds import Threshold, suggest_threshold
from pgembed.queries.search.boosts import decay
from pgembed.queries.search.counts import count_within, facets
from pgembed.queries.search.diversity import diversify
from pgembed.queries.search.explanation import SearchExplanation, SearchLeg, aexplain_search, explain_search
from pgembed.queries.search.highlights import Passage, apassages, passages
from pgembed.queries.search.many import search_many
from pgembed.queries.search.recommendation import recommend
from pgembed.queries.search.reranking import arerank, rerank
from pgembed.queries.search.semantic import semantic_search
from pgembed.queries.words.hybrid import hybrid_search
from pgembed.queries.words.keywords import keyword_search

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
