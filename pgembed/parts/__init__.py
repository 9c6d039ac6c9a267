"""Long texts: cut into pieces that an encoder reads whole, and kept in a table of parts with their vectors.

:func:`split` cuts a text along its headings, paragraphs and sentences, by the encoder's own tokenizer;
:class:`Splitting` are the settings for many texts.

===========  =======================================================================================
file         what it is for
===========  =======================================================================================
part         ``embedding_parts`` and the parts of a text, with their digests
flushing     what a flush does with parts
parts_table  the table of parts and its class; digest and pending index on the table of the text
late         late chunking: parts that are encoded within their text
splitting    the settings, and the pieces
tree         where a text is cut, and that each piece fits
context      what is put before each piece
splitters    splitters of one's own
formats      text, Markdown, HTML, code: the places in it and their ranks
sentences    sentences, words and characters of any script
===========  =======================================================================================
"""

import pgembed.parts.flushing  # noqa: F401  (it listens on import)
from pgembed.parts.formats import FORMATS, Format, Rank
from pgembed.parts.part import Cut, Part, PartsDeclaration, Stored, declared_as, embedding_parts, matched
from pgembed.parts.parts_table import PartsTable, add_parts, bind_parts, parts_of, parts_with
from pgembed.parts.sentences import sentences
from pgembed.parts.splitters import Skip, Splitter
from pgembed.parts.splitting import SPLITTING_VERSION, Piece, Splitting, TokenCounter, split

__all__ = [
    "FORMATS",
    "SPLITTING_VERSION",
    "Cut",
    "Format",
    "Part",
    "PartsDeclaration",
    "PartsTable",
    "Piece",
    "Rank",
    "Skip",
    "Splitter",
    "Splitting",
    "Stored",
    "TokenCounter",
    "add_parts",
    "bind_parts",
    "declared_as",
    "embedding_parts",
    "matched",
    "parts_of",
    "parts_with",
    "sentences",
    "split",
]
