"""What sessions do with the embeddings of the rows that they write; importing this begins to listen.

``flush`` handles the objects of a flush, ``bulk`` the ORM's statements and its legacy bulk methods. Both find
the embeddings of a class in ``mapped``; ``outcome`` decides what happens to each row, and encodes the texts.
"""

from pgembed.columns.hooks import bulk, flush

__all__ = ["bulk", "flush"]
