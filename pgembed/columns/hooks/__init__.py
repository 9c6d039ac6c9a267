"""What sessions do with the embeddings of the rows that they write; importing this begins to listen.

``flush`` handles the objects of a flush, ``bulk`` the ORM's statements, ``legacy`` its old bulk methods. All
three find the embeddings of a class in ``mapped``, ask ``outcome`` what happens to each row, and encode what
is left in one ``encoder_batch``.
"""

from pgembed.columns.hooks import bulk, flush, legacy

__all__ = ["bulk", "flush", "legacy"]
