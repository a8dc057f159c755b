"""The native API of receipts: `/api/receipts`, for admins; and the public key, for every caller."""

import base64
from typing import Annotated, Any

import msgspec
from litestar import Router, get
from litestar.params import FromQuery, QueryParameter

from signoff.core.reviews.receipt import key_id
from signoff.doors.dependencies import InjectedCaller, InjectedServices
from signoff.doors.http import INTS
from signoff.work.reviews.receipts import list_receipts, public_key, receipt_filter, receipts_head

MAX_PAGE = 1000


@get("/", summary="List receipts")
async def get_receipts(
    services: InjectedServices,
    caller: InjectedCaller,
    job_id: FromQuery[str | None] = None,
    after: Annotated[int, QueryParameter(ge=0, lt=INTS)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """Return a page of receipts in the order of their numbers, for admins. Pass `next` as `after` to get the next page.

    `line` is the receipt as it was signed. `salt`, in hexadecimal, allows to check its digests; it is null after the
    contents of the job were deleted.
    """
    page = await list_receipts(services, caller, receipt_filter(after_seq=after, job_id=job_id, limit=limit))
    data = [
        {
            "receipt": msgspec.Raw(stored.line),
            "line": stored.line.decode(),
            "salt": None if stored.salt is None else stored.salt.hex(),
        }
        for stored in page
    ]
    return {"data": data, "next": page[-1].seq if len(page) == limit else None}


@get("/head", summary="Get the signed head of the receipts")
async def get_head(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return the number and the hash of the last receipt, signed, for admins."""
    return msgspec.to_builtins(await receipts_head(services, caller))


@get("/key", summary="Get the public key of receipts")
async def get_key(services: InjectedServices, caller: InjectedCaller) -> dict[str, str]:
    """Return the Ed25519 public key that signs the next receipt, in base64, and its id."""
    key = await public_key(services)
    return {"algorithm": "Ed25519", "id": key_id(key), "public_key": base64.b64encode(key).decode()}


router = Router("/api/receipts", route_handlers=[get_receipts, get_head, get_key], tags=["receipts"])
