"""Long texts: cut into pieces that an encoder reads whole.

:func:`split` cuts a text along its headings, paragraphs and sentences, by the encoder's own tokenizer.

=========  =========================================================================================
file       what it is for
=========  =========================================================================================
splitting  where a text is cut, and that each piece fits
formats    text, Markdown, HTML, code: the places in it and their ranks
sentences  sentences, words and characters of any script
=========  =========================================================================================
"""

from pgembed.parts.formats import FORMATS, Format, Rank
from pgembed.parts.sentences import sentences
from pgembed.parts.splitting import Piece, TokenCounter, split

__all__ = ["FORMATS", "Format", "Piece", "Rank", "TokenCounter", "sentences", "split"]
