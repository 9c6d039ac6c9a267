"""The database's side: installing the SQL objects, and the embedded development server."""

from pgembed.columns.extension import ensure_extension
from pgembed.database.embedded import embedded
from pgembed.database.install import check_server, install

__all__ = ["check_server", "embedded", "ensure_extension", "install"]
