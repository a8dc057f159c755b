"""The chain of receipts, in SQL: its lock, its end, and its keys."""

from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from signoff.core.reviews.receipt import (
    FIRST_HASH,
    Head,
    KeyReceipt,
    Receipt,
    encode_key,
    hash_of,
    key_id,
    signed_head,
    signed_line,
)
from signoff.stores.receipt_signer import ReceiptSigner
from signoff.stores.receipts_schema import receipt_keys, receipts
from signoff.stores.transaction import Tx
from signoff.stores.versions import lock

HEAD = sa.select(receipts.c.seq, receipts.c.hash).order_by(receipts.c.seq.desc()).limit(1)
NEWEST_KEY = sa.select(*receipt_keys.c).order_by(receipt_keys.c.number.desc()).limit(1)


class ReceiptChain:
    """The end of the chain, locked until the transaction ends. Without a key, it begins with the receipt of one.

    With `is_lost`, a new key begins at once, because the newest one cannot be opened.
    """

    def __init__(self, tx: Tx, *, is_lost: bool = False) -> None:
        lock(tx, "receipts")
        self._tx = tx
        last = tx.conn.execute(HEAD).one_or_none()
        self._seq, self._hash = (0, FIRST_HASH) if last is None else (last.seq, last.hash)
        row = tx.conn.execute(NEWEST_KEY).one_or_none()
        self._number = 0 if row is None else row.number
        self._private_key: Ed25519PrivateKey | None = None if row is None or is_lost else open_key(tx, row)
        self.key_id = None if row is None else key_id(row.public_key)
        if row is None:
            self.change_key()

    @property
    def public_key(self) -> bytes:
        """Public key of the next receipt."""
        return self._key.public_key().public_bytes_raw()

    @property
    def _key(self) -> Ed25519PrivateKey:
        if self._private_key is None:
            raise RuntimeError("the chain has no open key")
        return self._private_key

    def place(self) -> dict[str, Any]:
        """Return the fields of `Link` for the next receipt."""
        return {"seq": self._seq + 1, "at": self._tx.now, "before": self._hash, "key": _id_of(self._key)}

    def head(self) -> Head:
        """Return the signed statement of the last receipt."""
        head = Head(count=self._seq, hash=self._hash, at=self._tx.now, key=_id_of(self._key))
        return signed_head(head, self._key.sign)

    def append(self, receipt: Receipt, **columns: Any) -> None:
        """Sign and insert the next receipt."""
        self._seq, self._hash = receipt.seq, hash_of(receipt)
        row = {"seq": receipt.seq, "at": receipt.at, "hash": self._hash, "line": signed_line(receipt, self._key.sign)}
        self._tx.conn.execute(sa.insert(receipts).values(row | columns))

    def change_key(self) -> KeyReceipt:
        """Create a key, announce it by a receipt, and delete the private key before it."""
        new_key, sealed = _signer(self._tx).create()
        public_key = new_key.public_key().public_bytes_raw()
        self._private_key = self._private_key or new_key
        receipt = KeyReceipt(**self.place(), new_key=key_id(public_key), public_key=encode_key(public_key))
        self.append(receipt)
        self._tx.conn.execute(sa.update(receipt_keys).values(sealed=b""))
        row = {"number": self._number + 1, "public_key": public_key, "sealed": sealed, "created_at": self._tx.now}
        self._tx.conn.execute(sa.insert(receipt_keys).values(row))
        self._number, self._private_key, self.key_id = self._number + 1, new_key, receipt.new_key
        return receipt


def open_key(tx: Tx, row: Any) -> Ed25519PrivateKey:
    """Return the private key of a row of `receipt_keys`. Raises Unreadable."""
    return _signer(tx).open(row.public_key, row.sealed)


def _id_of(key: Ed25519PrivateKey) -> str:
    return key_id(key.public_key().public_bytes_raw())


def _signer(tx: Tx) -> ReceiptSigner:
    if tx.signer is None:
        raise RuntimeError("this store was opened without a vault, and cannot sign receipts")
    return tx.signer
