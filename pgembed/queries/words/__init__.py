"""Searches by words, alone or with the meaning.

============  ======================================================================
file          what it is for
============  ======================================================================
keywords      ``keyword_search``
hybrid        ``hybrid_search``
fusion        how its two searches are fused
fulltext      rows by their words, ranked by ``ts_rank``
bm25          the same where words are declared, ranked by BM25
============  ======================================================================
"""
