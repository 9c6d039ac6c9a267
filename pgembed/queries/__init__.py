"""Queries as statements: every helper takes columns and expressions, and returns a ``Select``."""

from pgembed.queries.classify import knn_classify
from pgembed.queries.duplicates import duplicate_groups, near_duplicates
from pgembed.queries.hybrid import hybrid_search
from pgembed.queries.search import semantic_search

__all__ = ["duplicate_groups", "hybrid_search", "knn_classify", "near_duplicates", "semantic_search"]
