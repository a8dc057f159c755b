"""Reading of the input file of a batch, line by line."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator

from signoff.core.batch import Batch, BatchError
from signoff.core.batch_lines import BatchLine, Line, LineReader, parse_line
from signoff.errors import BlobMissing
from signoff.work.services import Services

# So many lines are handled before other work of this process gets a turn.
LINES_PER_TURN = 20


async def read_lines(services: Services, batch: Batch, *, from_place: bool = False) -> AsyncGenerator[Line]:
    """Yield the lines of the input file that are not blank, all of them or those that have no job yet.

    The latter were checked under the limit of that time, and are whole, whatever the limit is now.
    Raises BlobMissing, Overloaded.
    """
    next_line, next_byte = (batch.next_line, batch.next_byte) if from_place else (1, 0)
    max_bytes = sys.maxsize if from_place else services.rules.max_body_bytes
    reader = LineReader(max_bytes, next_line=next_line, next_byte=next_byte)
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


def checked_request(line: Line) -> BatchLine:
    """Return the request of a line that was checked. Raises BlobMissing if the contents have changed since."""
    try:
        return parse_line(line.content or b"")
    except ValueError:
        raise BlobMissing(f"Line {line.number} of the input file is not the one that was checked.") from None


def lost_contents(batch: Batch) -> BatchError:
    """Return the fault of a batch whose input file cannot be read to its end."""
    message = (
        f"The contents of the file {batch.input_file_id} were missing before all requests were made. "
        "Until they are restored, no more are made; cancel the batch, and upload the requests without a result again."
    )
    return BatchError(code="invalid_request", message=message, param="input_file_id")
