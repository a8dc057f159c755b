"""Verification of a chain of receipts, from nothing but the lines of the export, pinned public keys, and a head."""

from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from signoff.core.reviews.receipt import (
    FIRST_HASH,
    HEAD_PREFIX,
    SIGNED_PREFIX,
    ArchiveReceipt,
    Head,
    KeyReceipt,
    Receipt,
    canonical_json,
    decode_base64,
    hash_of,
    key_id,
    parse_line,
)
from signoff.errors import SignoffError


class BrokenChain(SignoffError):
    """The receipts are not those that were signed; the message names the first receipt at fault."""

    code = "broken_chain"


class ChainVerifier:
    """Verifier of receipts that come line by line, in order.

    `pinned` are the public keys that the caller trusts. A key that a trusted one has announced is trusted too, and from
    then on alone.
    """

    def __init__(self, pinned: Sequence[bytes], head: Head | None = None) -> None:
        self._pinned = {key_id(key): Ed25519PublicKey.from_public_bytes(key) for key in pinned}
        self._head = head
        self._hash_at_head: str | None = None
        self._key: str | None = None
        self._keys = dict(self._pinned)
        self._first: Receipt | None = None
        self._is_anchored = False
        self.count = 0
        """Number of receipts that were verified."""
        self.last = 0
        """Number of the last receipt; 0 if there is none yet."""
        self._last_hash = FIRST_HASH

    @property
    def first(self) -> int:
        """Number of the first receipt; 0 if there is none yet."""
        return 0 if self._first is None else self._first.seq

    def add(self, line: bytes) -> None:
        """Verify the next receipt. Raises BrokenChain."""
        expected = self.last + 1 if self.count else None
        place = f"receipt {expected}" if expected else "the first receipt"
        try:
            receipt, signature = parse_line(line)
        except (ValueError, msgspec.MsgspecError) as error:
            raise BrokenChain(f"The line of {place} was altered: {error}.") from None
        self._check_signature(receipt, signature, place)
        if expected is None:
            self._begin(receipt)
        else:
            self._check_place(receipt, expected)
        self._follow(receipt)

    def finish(self) -> None:
        """Check what only the end can show: archived receipts, and the head. Raises BrokenChain."""
        if self.first > 1 and not self._is_anchored and not self._head_is_before_first():
            raise BrokenChain(
                f"Receipts 1 to {self.first - 1} are missing, and no later receipt says that they were archived. "
                "Verify the archive and this file together, in this order."
            )
        if self._head is not None:
            self._check_head(self._head)

    def _check_signature(self, receipt: Receipt, signature: bytes, place: str) -> None:
        if isinstance(receipt, KeyReceipt) and receipt.key == receipt.new_key:
            key = self._pinned.get(receipt.key)
            reason = "a key that no other key has announced; pin it with --key if you trust it"
        else:
            key = self._keys.get(receipt.key) if self._key in {None, receipt.key} else None
            reason = "a key that is not trusted at this place"
        if key is None:
            raise BrokenChain(f"In the place of {place}: receipt {receipt.seq} is signed with {reason}: {receipt.key}.")
        try:
            key.verify(signature, SIGNED_PREFIX + canonical_json(receipt))
        except InvalidSignature:
            raise BrokenChain(f"The line of {place} was altered: its signature is wrong.") from None

    def _begin(self, receipt: Receipt) -> None:
        self._first = receipt
        if receipt.seq == 1 and receipt.before != FIRST_HASH:
            raise BrokenChain("Receipt 1 does not begin a chain.")

    def _check_place(self, receipt: Receipt, expected: int) -> None:
        if receipt.seq > expected:
            last = receipt.seq - 1
            missing = f"Receipt {expected} is" if last == expected else f"Receipts {expected} to {last} are"
            raise BrokenChain(f"{missing} missing, or out of order: receipt {receipt.seq} follows {self.last}.")
        if receipt.seq < expected:
            raise BrokenChain(f"Receipt {receipt.seq} occurs twice, or is out of order: it follows {self.last}.")
        if receipt.before != self._last_hash:
            raise BrokenChain(f"Receipt {receipt.seq} does not follow this receipt {self.last}, but another one.")

    def _follow(self, receipt: Receipt) -> None:
        self.count, self.last, self._last_hash, self._key = self.count + 1, receipt.seq, hash_of(receipt), receipt.key
        if self._head is not None and self._head.count == receipt.seq:
            self._hash_at_head = self._last_hash
        if isinstance(receipt, KeyReceipt):
            self._trust(receipt)
        if isinstance(receipt, ArchiveReceipt) and self._first is not None:
            anchor = (receipt.archived_until, receipt.archived_hash)
            self._is_anchored = self._is_anchored or anchor == (self._first.seq - 1, self._first.before)

    def _trust(self, receipt: KeyReceipt) -> None:
        """Trust the new key from now on. Raises BrokenChain if its id does not fit."""
        try:
            public_key = decode_base64(receipt.public_key)
            self._keys[receipt.new_key] = Ed25519PublicKey.from_public_bytes(public_key)
        except ValueError as error:
            raise BrokenChain(f"Receipt {receipt.seq} announces a key that cannot be read: {error}.") from None
        if key_id(public_key) != receipt.new_key:
            raise BrokenChain(f"Receipt {receipt.seq} announces a key whose id does not fit.")
        self._key = receipt.new_key

    def _head_is_before_first(self) -> bool:
        head, first = self._head, self._first
        return head is not None and first is not None and (head.count, head.hash) == (first.seq - 1, first.before)

    def _check_head(self, head: Head) -> None:
        key = self._keys.get(head.key)
        unsigned = msgspec.structs.replace(head, signature="")
        try:
            if key is None:
                raise BrokenChain(f"The head is signed with a key that is not trusted: {head.key}.")
            key.verify(decode_base64(head.signature), HEAD_PREFIX + canonical_json(unsigned))
        except (InvalidSignature, ValueError):
            raise BrokenChain("The head was altered: its signature is wrong.") from None
        if head.count > self.last:
            raise BrokenChain(f"Receipts {self.last + 1} to {head.count} are missing at the end.")
        if self._head_is_before_first() or (head.count, head.hash) == (0, FIRST_HASH):
            return
        if head.count < self.first:
            raise BrokenChain(
                f"The head names receipt {head.count}, and the file begins with receipt {self.first}. "
                "Verify the archive and this file together, in this order."
            )
        if self._hash_at_head != head.hash:
            raise BrokenChain(f"Receipt {head.count} is not the one that the head names.")
