"""The database's side: SQL objects, what ``create_all`` adds, and the embedded development server."""

from pgembed.database import schema_events as _schema_events  # noqa: F401  (listens on import)
from pgembed.database.embedded import embedded
from pgembed.database.install import install
from pgembed.database.server import check_server, ensure_extension

__all__ = ["check_server", "embedded", "ensure_extension", "install"]
