"""The maximum of all files of a user, while some are being uploaded."""

from __future__ import annotations

import pytest

from signoff.errors import FilesTooLarge
from signoff.runtime.file_sizes import FileSizes

pytestmark = pytest.mark.anyio


async def test_uploads_at_the_same_time_count_together_with_what_is_stored() -> None:
    sizes, stored = FileSizes(100), {7: 40, 8: 0}

    async def load(user_id: int) -> int:
        return stored[user_id]

    async with sizes.counting(7, load) as one, sizes.counting(7, load) as two, sizes.counting(8, load) as other:
        one.add(30)
        two.add(30)
        with pytest.raises(FilesTooLarge):
            two.add(1)
        other.add(100)


async def test_an_upload_that_has_ended_counts_for_those_that_began_before() -> None:
    sizes = FileSizes(100)

    async def load(_: int) -> int:
        return 0

    async with sizes.counting(7, load) as late:
        async with sizes.counting(7, load) as one:
            one.add(90)
        with pytest.raises(FilesTooLarge):
            late.add(11)


async def test_an_upload_that_failed_does_not_count() -> None:
    sizes = FileSizes(100)

    async def load(_: int) -> int:
        return 0

    async with sizes.counting(7, load) as late:
        with pytest.raises(FilesTooLarge):
            async with sizes.counting(7, load) as one:
                one.add(101)
        late.add(100)
