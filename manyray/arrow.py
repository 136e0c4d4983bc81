"""pyarrow, which not everybody has: who needs it imports it from here, where it is needed.

Raises:
    Fatal: it is not installed.
"""

from typing import Any

from schemas.errors import Fatal

try:
    import pyarrow
    from pyarrow import parquet as pyarrow_parquet
except ImportError:
    raise Fatal("Parquet needs pyarrow: pip install 'manyray[parquet]'") from None

# It has no types of its own.
arrow: Any = pyarrow
parquet: Any = pyarrow_parquet
