"""Searches by meaning, what is beside the distance in them, and what is told of their rows.

=========================  ================================================================================
file                       what it is for
=========================  ================================================================================
semantic                   ``semantic_search``
many                       ``search_many``
boosts, groups             ``decay``, ``boost=`` and ``per=``
surroundings               the text around a part
diversity                  ``diversify``
counts                     ``count_within``, ``facets``
recommendation, examples   ``recommend``, and what it is given
reranking                  ``rerank``, ``arerank``: the rows of a search, scored by a cross-encoder
highlights                 ``passages``, ``apassages``: the sentences nearest to a query
explanation                ``explain_search``, ``aexplain_search``: how a search was executed
executed_plan              what its plan tells of that
=========================  ================================================================================
"""
