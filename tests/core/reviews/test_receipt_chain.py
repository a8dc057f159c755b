"""Tests of receipts: their form, the times in them, and what a verifier detects."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from signoff.core.job import Decision, Job
from signoff.core.reviews.copies import copy_for_reviewers
from signoff.core.reviews.figures import FigureTotals, details_of, figures_of, kappa_of
from signoff.core.reviews.receipt import (
    Head,
    OpenTime,
    ReceiptDraft,
    ReceiptVote,
    ReviewEvent,
    ReviewTimes,
    canonical_json,
    parse_line,
    review_times,
    signed_head,
    verdict_receipt,
)
from signoff.core.reviews.receipt_chain import BrokenChain, ChainVerifier
from simulation.receipts import Chain

JOB = Job(
    id="j",
    status="human",
    door="t",
    lane="later",
    user_id=1,
    token_id=1,
    target="echo",
    model="echo",
    path="/",
    body=b"{}",
)


def a_chain(count: int = 6) -> Chain:
    """Return a chain of `count` receipts; the first is that of the key."""
    chain = Chain()
    chain.begin(0)
    for number in range(count - 1):
        decision = Decision(verdict="approve", reviewer="änn")
        chain.decide(ReceiptDraft(before=JOB, after=JOB, decision=decision), [], (), number)
    return chain


def lines_of(chain: Chain) -> list[bytes]:
    return [line for _, line in chain.stored.values()]


def pinned(chain: Chain) -> bytes:
    return chain.key.public_key().public_bytes_raw()


def head_of(chain: Chain) -> Head:
    place = chain.place(9)
    return signed_head(Head(count=chain.count, hash=place["before"], at=9, key=place["key"]), chain.key.sign)


def verify(lines: list[bytes], key: bytes, head: Head | None = None) -> ChainVerifier:
    verifier = ChainVerifier([key], head)
    for line in lines:
        verifier.add(line)
    verifier.finish()
    return verifier


def test_an_untouched_chain_is_verified() -> None:
    chain = a_chain()
    verifier = verify(lines_of(chain), pinned(chain), head_of(chain))
    assert (verifier.first, verifier.last, verifier.count) == (1, 6, 6)


def test_every_changed_byte_is_detected_and_named_by_the_number_of_its_receipt() -> None:
    chain = a_chain(4)
    lines, key = lines_of(chain), pinned(chain)
    for index in range(len(lines[2])):
        for flip in (1, 4, 32):
            changed = bytearray(lines[2])
            changed[index] ^= flip
            with pytest.raises(BrokenChain, match=r"receipt 3|Receipt 3|[Rr]eceipts? 3"):
                verify([*lines[:2], bytes(changed), lines[3]], key)


def test_missing_reordered_and_repeated_receipts_are_named() -> None:
    chain = a_chain()
    one, two, three, four, five, six = lines_of(chain)
    cases = {
        "Receipt 3 is missing, or out of order: receipt 4 follows 2.": [one, two, four, five, six],
        "Receipts 3 to 4 are missing, or out of order: receipt 5 follows 2.": [one, two, five, six],
        "Receipt 2 is missing, or out of order: receipt 3 follows 1.": [one, three, two, four, five, six],
        "Receipt 2 occurs twice, or is out of order: it follows 2.": [one, two, two, three],
        "Receipt 1 occurs twice, or is out of order: it follows 6.": [one, two, three, four, five, six, one],
        "Receipts 1 to 1 are missing": [two, three, four, five, six],
    }
    for message, lines in cases.items():
        with pytest.raises(BrokenChain, match=message.replace(".", r"\.")):
            verify(lines, pinned(chain))


def test_a_removed_tail_is_detected_by_the_head() -> None:
    chain = a_chain()
    lines, key, head = lines_of(chain), pinned(chain), head_of(chain)
    verify(lines[:4], key)  # nothing shows it without a head
    with pytest.raises(BrokenChain, match="Receipts 5 to 6 are missing at the end"):
        verify(lines[:4], key, head)


def test_a_head_of_before_is_one_of_its_receipts() -> None:
    chain = a_chain(3)
    head = head_of(chain)
    chain.decide(ReceiptDraft(before=JOB, after=JOB, decision=Decision(verdict="reject", reviewer="b")), [], (), 9)
    verify(lines_of(chain), pinned(chain), head)
    forged = Head(count=3, hash="0" * 64, at=head.at, key=head.key, signature=head.signature)
    with pytest.raises(BrokenChain, match="The head was altered"):
        verify(lines_of(chain), pinned(chain), forged)


def test_a_chain_that_was_written_anew_is_detected_by_the_head() -> None:
    chain, other = a_chain(4), a_chain(2)
    for number in range(2):
        decision = Decision(verdict="reject", reviewer="eve")
        other.decide(ReceiptDraft(before=JOB, after=JOB, decision=decision), [], (), number)
    with pytest.raises(BrokenChain, match="Receipt 4 is not the one that the head names"):
        verify(lines_of(other), pinned(other), head_of(chain))


def test_only_pinned_keys_and_those_that_they_announce_are_trusted() -> None:
    chain = a_chain(2)
    key, stranger = pinned(chain), Ed25519PrivateKey.from_private_bytes(sha256(b"s").digest())
    with pytest.raises(BrokenChain, match="receipt 1 is signed with a key that no other key has announced"):
        verify(lines_of(chain), stranger.public_key().public_bytes_raw())
    chain.change_key(1, is_lost=False)
    later = chain.key
    chain.decide(ReceiptDraft(before=JOB, after=JOB, decision=Decision(verdict="reject", reviewer="b")), [], (), 2)
    verify(lines_of(chain), key, head_of(chain))
    chain._key = Ed25519PrivateKey.from_private_bytes(sha256(b"key 1").digest())  # the old key goes on signing
    chain.decide(ReceiptDraft(before=JOB, after=JOB, decision=Decision(verdict="reject", reviewer="b")), [], (), 3)
    with pytest.raises(BrokenChain, match="receipt 5 is signed with a key that is not trusted at this place"):
        verify(lines_of(chain), key)
    assert later is not chain.key


def test_a_line_is_in_canonical_form() -> None:
    chain = a_chain(2)
    line = lines_of(chain)[1]
    parse_line(line)
    for changed in (line + b" ", line.replace(b",", b", ", 1), b'{"zzz":1,' + line[1:], line[:-3] + b'"}'):
        with pytest.raises(ValueError, match=r".*"):
            parse_line(changed)


def test_canonical_json_is_that_of_rfc_8785() -> None:
    """Compare with the examples of texts and of the order of names in RFC 8785, sections 3.2.2 and 3.2.3."""
    value = {"string": '\u20ac$\u000f\nA\'B"\\\\"/', "literals": [None, True, False], "1": 1, "\r": 2}
    expected = '{"\\r":2,"1":1,"literals":[null,true,false],"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert canonical_json(value) == expected.encode()


def test_open_times_end_with_the_lease_the_next_opening_or_the_verdict() -> None:
    events = [
        ReviewEvent("hold", "worker", 100),
        ReviewEvent("open", "user:ann", 110, 140),
        ReviewEvent("renew", "user:ann", 130, 170),  # open from 110 on
        ReviewEvent("open", "user:bob", 200, 290),  # Ann's lease has lapsed at 170
        ReviewEvent("decide", "user:bob", 230),
    ]
    times = review_times(events, 250)
    assert times == ReviewTimes(
        held_at=100, decided_at=230, open=(OpenTime(reviewer="ann", us=60), OpenTime(reviewer="bob", us=30))
    )


def test_the_times_of_an_earlier_hold_do_not_count_again() -> None:
    earlier = [
        ReviewEvent("hold", "w", 1),
        ReviewEvent("open", "user:ann", 2, 90),
        ReviewEvent("decide", "user:ann", 5),
    ]
    assert review_times([*earlier, ReviewEvent("hold", "w", 100)], 150) == ReviewTimes(
        held_at=100, decided_at=150, open=()
    )


def test_figures_count_edits_times_and_agreement() -> None:
    votes = tuple(
        ReceiptVote(reviewer=name, verdict=verdict)
        for name, verdict in (("a", "approve"), ("b", "reject"), ("c", "approve"))
    )
    decision = Decision(verdict="approve", reviewer="c")
    voted = {"vote_pairs": 2, "own_approvals": 2}
    times = ReviewTimes(held_at=10, decided_at=25, open=(OpenTime(reviewer="a", us=3), OpenTime(reviewer="c", us=4)))
    after = replace(JOB, status="success", response=b"new")
    draft = ReceiptDraft(before=replace(JOB, response=b"old"), after=after, decision=decision)
    place = {"seq": 1, "at": 30, "before": "", "key": ""}
    figures = figures_of(
        verdict_receipt(draft, place, salt=b"s", times=times, votes=votes), details_of(draft.before, is_caught=None)
    )
    assert figures == {
        "a": FigureTotals(open_us=3, agreed_pairs=1, **voted, other_rejections=1, other_approvals=1),
        "b": FigureTotals(vote_pairs=2, own_rejections=2, other_approvals=2),
        "c": FigureTotals(
            decisions=1,
            approved=1,
            delivered=1,
            edited=1,
            verdict_us=15,
            open_us=4,
            agreed_pairs=1,
            other_rejections=1,
            other_approvals=1,
            **voted,
        ),
    }


def test_kappa_is_that_of_the_pairs_of_votes_and_unknown_where_earlier_votes_have_no_verdict() -> None:
    # each of 50 pairs counts for both: 20 approvals of both, 15 rejections of both, 15 times one of each
    counts = {"own_approvals": 55, "own_rejections": 45, "other_approvals": 55, "other_rejections": 45}
    totals = FigureTotals(vote_pairs=100, agreed_pairs=70, **counts)
    assert kappa_of(totals) == pytest.approx((0.7 - 0.505) / (1 - 0.505))
    assert kappa_of(FigureTotals(vote_pairs=2, agreed_pairs=1)) is None
    assert kappa_of(FigureTotals(vote_pairs=2, agreed_pairs=2, own_approvals=2, other_approvals=2)) is None


def test_a_planted_item_counts_as_planted_alone_and_a_copy_is_not_delivered() -> None:
    audited = copy_for_reviewers(JOB, 5)
    planted = replace(audited, id="another")
    place = {"seq": 1, "at": 30, "before": "", "key": ""}
    times = ReviewTimes(held_at=10, decided_at=25, open=(OpenTime(reviewer="c", us=4),))
    figures = list[FigureTotals]()
    for copy, is_caught in ((audited, None), (planted, False)):
        after = replace(copy, status="success")
        draft = ReceiptDraft(before=copy, after=after, decision=Decision(verdict="approve", reviewer="c"))
        receipt = verdict_receipt(draft, place, salt=b"s", times=times, votes=())
        figures += figures_of(receipt, details_of(copy, is_caught=is_caught)).values()
    assert figures == [
        FigureTotals(decisions=1, approved=1, verdict_us=15, open_us=4),
        FigureTotals(planted=1, open_us=4),
    ]
