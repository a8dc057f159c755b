"""The database's clock, in SQL: the only one that leases, deadlines and due times are compared with."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now_us(FunctionElement[int]):  # noqa: N801 -- SQL functions are lower case
    """The SQL function for the database's present time: microseconds since 1970, UTC."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_us, "sqlite")
def _sqlite(element: now_us, compiler: Any, **options: Any) -> str:
    # SQLite before 3.42 has no unixepoch with fractions. A Julian day as a double is exact to about 40 microseconds.
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


@compiles(now_us, "postgresql")
def _postgresql(element: now_us, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
