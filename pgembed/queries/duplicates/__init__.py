"""Rows that say nearly the same, and rows about the same thing.

=================  ========================================================================================
file               what it is for
=================  ========================================================================================
near_duplicates    ``near_duplicates``, ``duplicates_of``, ``duplicate_groups``, ``mine_pairs``
pairs, edges       pairs of near rows, over row numbers; searched for, or stored before: ``rethreshold``
components         the groups that they make
keeping            ``keep_list``
negatives          ``hard_negatives``
matching           ``match``: two lists of the same things
merging            ``merge_duplicates``
clusters           ``cluster``, ``topics``
thresholds         ``suggest_threshold``
=================  ========================================================================================
"""
