"""Numbers that searches in Python and searches in SQL share.

The files of ``sql/`` name them, as in ``@ALIKE@`` or ``@NEIGHBOURS.most@``; installing puts in the values
(:func:`pgembed.database.scripts.installation`). Another value gives the SQL another checksum, so that it is
installed again.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """Whole numbers, both ends included."""

    least: int
    most: int


#: The most dimensions that a column stores, by type.
MAX_DIMENSIONS = {"vector": 16000, "halfvec": 16000}

#: HNSW's candidates, as pgvector 0.8 takes them.
EF_SEARCH = Range(1, 1000)
#: The candidates that a search asks for, for each row that it wants, and for however few rows.
EF_SEARCH_PER_ROW = 2
EF_SEARCH_FLOOR = 40
#: IVFFlat's lists, and how many of them a search looks into.
LISTS = PROBES = Range(1, 32768)
LISTS_DEFAULT = 100
#: How a scan goes on that found too few rows, by access method.
ITERATIVE_SCAN = {"hnsw": "strict_order", "ivfflat": "relaxed_order"}

#: Under conditions a scan of HNSW is believed as long as it has returned a share of the table (1 / this) at
#: most, within bounds, and gives up when it has met this many times as many: it returns them all then, near
#: or not, and reading the table costs less.
SCAN_SHARE, SCAN_BOUNDS, SCAN_MET = 200, Range(500, 5_000), 4

#: How many candidates are compared again for each requested row, by the type of what an index holds
#: in place of whole vectors.
OVERSAMPLE = {"halfvec": 2, "vector": 4, "sparsevec": 4, "bit": 10}
#: The most rows alike of which an index is believed. An element of an HNSW graph holds 10 rows of equal
#: vectors and knows 2 m others, so that up to 20 m rows (80 where m is 4) are found together; of more, some
#: elements know each other only, and nothing leads to the rest.
ALIKE = 80

#: The candidates that are scored again, for each row that a search wants, and for however few rows.
CANDIDATES_PER_ROW = 4
CANDIDATES_FLOOR = 50
#: How many times as many candidates are looked at where the first ones are of too few groups.
GROUPS_WIDER = 10

#: The neighbours of each row that a search for near-duplicates can ask an index for.
NEIGHBOURS = Range(1, 1000)
#: Up to this many rows, comparing all pairs is about as fast as looking up the neighbours of each.
EXACT_UP_TO = 5_000
#: Groups of at most this many rows have all their pairs compared to find the two that are least alike.
INNER_UP_TO = 1_000
#: Vectors in an array. Arrays are unpacked in memory, so a table of any size is compared block by block.
BLOCK = 64
#: An exact search for as many queries reads the table once, in blocks that all queries meet while they are in
#: the processor's cache, if it is for at most so many rows of each. A block has ``BLOCK`` times as many rows,
#: at least ``BLOCK_ROWS``, so that few rows are left of it.
QUERIES_TOGETHER, ROWS_TOGETHER, BLOCK_ROWS = 32, 64, 512

#: A vote weighs 1 / (distance + this), so that an exact hit outweighs everything but other exact hits.
VOTE_OFFSET = 1e-6
#: The least exponent of votes by inner product and of decay: Postgres raises an error on underflow.
LEAST_EXPONENT = -700.0

#: What joins words into paths, hosts, addresses, versions, tags and compounds: Postgres's parser would make
#: one word of "dog/cat" and of "dog.cat", so these become blanks before it reads a text or a question.
WORD_SEPARATORS = "/.-_@:~+<>&"
#: The characters of a question that count.
QUESTION = 2_000
#: The rows that are scored for a question by words, as far as can be expected: in all (of a table that has no
#: more, all that match), or for each row that is wanted; under conditions, which some of them do not fulfil,
#: this many times as many.
WORDS_CANDIDATES, WORDS_PER_ROW, WORDS_FILTERED = 4_000, 20, 4
#: As many of the rarest words of a question are looked for in pairs, and in threes.
WORDS_PAIRED, WORDS_TRIPLED = 12, 8
#: The rows whose lengths stand for all as long as there are no statistics of words.
WORDS_SAMPLE = 200
