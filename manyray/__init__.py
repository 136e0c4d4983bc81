"""What a user types and imports: the command line and the client.

import manyray

with manyray.connect("localhost:9092") as client:
    vectors = client.embed(["hello", "world"])  # float32, shape (2, 384)
"""

from typing import TYPE_CHECKING, Any

from schemas.errors import Fatal, ManyrayError, Reject, Retry

if TYPE_CHECKING:
    from manyray.client import Client, connect
    from manyray.subscription import Batch, Subscription
    from schemas.post import Post

__all__ = ["Batch", "Client", "Fatal", "ManyrayError", "Post", "Reject", "Retry", "Subscription", "connect"]

_HOMES = {
    "Batch": "manyray.subscription",
    "Client": "manyray.client",
    "Post": "schemas.post",
    "Subscription": "manyray.subscription",
    "connect": "manyray.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line needs none of them for `--help`."""
    if name not in _HOMES:
        raise AttributeError(f"module manyray has no attribute {name}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(_HOMES[name]), name)
