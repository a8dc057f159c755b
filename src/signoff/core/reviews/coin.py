"""Coins: random numbers by which answers are chosen for an audit, one for each answer, fixed by a secret key.

Nothing that a caller chooses goes into a coin: the server makes the ids of jobs, and counts rounds and attempts.
"""

import hashlib
import hmac

import msgspec

# Purpose from which the vault derives the key of the coins.
KEY_PURPOSE = b"signoff audit coin 1"
_BITS = 53


class Coin(msgspec.Struct, frozen=True, kw_only=True):
    """The coin of an answer, stored with its job before the answer leaves, and never tossed again."""

    value: float
    """The random number, from 0 up to 1."""
    look_rate: float
    """A person looks at the answer if `value` is less."""
    audit_rate: float = 0
    """The look is an audit of the error budget if `value` is less; 0 without an error budget."""
    policy: str | None = None
    """Name of the policy whose error budget applies; None for none."""
    period: int | None = None
    """Number of the period of the error budget."""
    lease: str | None = None
    """Id of the process's lease on passes of the error budget, from which this answer uses one; None without."""

    @property
    def is_look(self) -> bool:
        """True if a person looks at the answer before it leaves."""
        return self.value < self.look_rate

    @property
    def is_audit(self) -> bool:
        """True if the look counts in the error budget."""
        return self.value < self.audit_rate


def toss(key: bytes, job_id: str, review_round: int, attempt: int) -> float:
    """Return the random number, from 0 up to 1, of the answer of an attempt in a round of a job.

    Args:
        key: Key that was derived for this use only.
        job_id: Id of the job.
        review_round: Review round of the job before the answer is held.
        attempt: Number of the attempt that gave the answer.
    """
    digest = hmac.digest(key, f"{job_id}\x00{review_round}\x00{attempt}".encode(), hashlib.sha256)
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / (1 << _BITS)
