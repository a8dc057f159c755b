"""Reading of the input file of a batch, line by line."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from signoff.core.batch import Batch
from signoff.core.batch_lines import Line, LineReader
from signoff.work.services import Services

# So many lines are handled before other work of this process gets a turn.
LINES_PER_TURN = 20


async def read_lines(services: Services, batch: Batch, *, from_place: bool = False) -> AsyncGenerator[Line]:
    """Yield the lines of the input file that are not blank, all of them or those that have no job yet.

    Raises BlobMissing, Overloaded.
    """
    next_line, next_byte = (batch.next_line, batch.next_byte) if from_place else (1, 0)
    reader = LineReader(services.rules.max_body_bytes, next_line=next_line, next_byte=next_byte)
    count = 0
    async with contextlib.aclosing(
        services.adapters.blobs.read(f"files/{batch.input_file_id}", offset=next_byte)
    ) as chunks:
        async for chunk in chunks:
            for line in reader.feed(chunk):
                yield line
                count += 1
                if count % LINES_PER_TURN == 0:
                    await asyncio.sleep(0)
    if (last := reader.end()) is not None:
        yield last
