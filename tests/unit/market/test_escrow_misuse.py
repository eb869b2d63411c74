"""What any of the three may try with money in escrow, each row by itself."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from msgspec import structs

from nostrvpn.cashu.conditions import Lock, may_spend, parse_lock, sign_inputs, signatures_of
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.market import arbiter as bench
from nostrvpn.market.arbiter import Arbiter
from nostrvpn.market.effects import Heard, Keep, Tell, Tick
from nostrvpn.market.escrow import Parties, case_id, parties_of, sign_secrets
from nostrvpn.market.messages import (
    Claim,
    Fund,
    Grant,
    Release,
    Return,
    TopUp,
    Verdict,
    parse_message,
    render_message,
)
from nostrvpn.market.terms import MIB, PayMode
from nostrvpn.nostr.event import public_key
from tests.market_shop import SELLER, SETTINGS, START, TERMS, Buyer, Shop, books, lease_of
from tests.unit.market.offers import key, moment, secret

JUDGE = sha256(b"judge").digest()
JUDGE_KEY = public_key(JUDGE)
SELLER_KEY = public_key(SELLER)
WEEK = 7 * 86_400
TAKEN = replace(
    SETTINGS,
    terms=replace(TERMS, pay=(*TERMS.pay, PayMode.ESCROW)),
    escrow=frozenset((JUDGE_KEY,)),
    relays=("wss://seller.example",),
)


class EscrowBuyer(Buyer):
    """A buyer that pays in escrow, by hand."""

    def __init__(self, shop, name="buyer", arbiter=JUDGE_KEY):
        super().__init__(shop, name)
        self.arbiter = arbiter

    def request(self, **changes):
        return super().request(**{"arbiter": self.arbiter, **changes})

    def lock(self, **changes):
        ends = int(START + self.shop.now) + 4 * 86_400
        lock = Parties(SELLER_KEY, self.pubkey, self.arbiter, ends).lock
        return replace(lock, **changes)

    def proofs(self, *amounts, **changes):
        return self.shop.mint.issue(amounts, self.lock(**changes))

    def release(self, proofs, seq, **changes):
        sigs = sign_secrets((proof.secret for proof in proofs), self.secret)
        message = Release(lease_id=self.lease_id, seq=seq, sigs=sigs)
        return self.notice(structs.replace(message, **changes))


def text_of(shop, proofs):
    return render_token(Token(shop.mint.url, proofs))


def opened(*amounts):
    """A lease with payments of these amounts in escrow."""
    shop = Shop(PayMode.ESCROW, settings=TAKEN)
    buyer = EscrowBuyer(shop)
    buyer.ask()
    shown = [buyer.proofs(amount) for amount in amounts]
    for seq, proofs in enumerate(shown):
        kind = TopUp if seq else Fund
        token = text_of(shop, proofs)
        assert buyer.until(kind(lease_id=buyer.lease_id, seq=seq, token=token), Grant)
    return shop, buyer, shown


# What a buyer may show


def changed(kind, buyer):
    """A lock that is not the one agreed to."""
    me, judge, other = f"02{buyer.pubkey}", f"02{JUDGE_KEY}", f"02{key(5)}"
    return {
        "one signature is enough": {"n_sigs": 1},
        "three are needed": {"n_sigs": 3},
        "another third": {"pubkeys": (me, other)},
        "no third": {"pubkeys": (me,)},
        "a fourth": {"pubkeys": (me, judge, other)},
        "in another order": {"pubkeys": (judge, me)},
        "to another seller": {"key": other},
        "refund to another": {"refund": (other,)},
        "refund to anybody": {"refund": ()},
        "refund by two": {"refund": (me, other), "n_sigs_refund": 2},
        "ends soon": {"locktime": int(START) + 86_400},
        "never ends": {"locktime": None, "refund": ()},
        "ends in years": {"locktime": int(START) + 400 * 86_400},
        "the odd form of a key": {"pubkeys": (f"03{buyer.pubkey}", judge)},
    }[kind]


KINDS = [
    *("one signature is enough", "three are needed", "another third", "no third", "a fourth"),
    *("in another order", "to another seller", "refund to another", "refund to anybody"),
    *("refund by two", "ends soon", "never ends", "ends in years", "the odd form of a key"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_another_lock_than_agreed_is_refused_and_nothing_kept(kind):
    shop = Shop(PayMode.ESCROW, settings=TAKEN)
    buyer = EscrowBuyer(shop)
    buyer.ask()
    code = "lock-too-short" if kind == "ends soon" else "locked-token"
    assert buyer.pay(text_of(shop, buyer.proofs(4, **changed(kind, buyer)))) == [code]
    assert shop.disk == {}
    assert buyer.pay(text_of(shop, shop.mint.issue((4,)))) == ["locked-token"]
    assert buyer.until(
        Fund(lease_id=buyer.lease_id, seq=0, token=text_of(shop, buyer.proofs(4))), Grant
    )


@pytest.mark.parametrize("who", ["nobody", "the seller", "the buyer", "an unknown one"])
def test_an_arbiter_that_is_no_third_gets_no_quote(who):
    settings = replace(TAKEN, escrow=frozenset((JUDGE_KEY, SELLER_KEY)))
    shop = Shop(PayMode.ESCROW, settings=settings)
    buyer = EscrowBuyer(shop)
    shop.seller.settings = replace(settings, escrow=settings.escrow | {buyer.pubkey})
    buyer.arbiter = {"nobody": "", "the seller": SELLER_KEY, "the buyer": buyer.pubkey}.get(
        who, key(7)
    )
    assert buyer.notice(buyer.request()) == ["arbiter-not-accepted"]


def test_a_third_payment_waits_for_the_first_to_be_released():
    shop, buyer, [one, two] = opened(2, 4)
    three = text_of(shop, buyer.proofs(8))
    assert buyer.pay(three, 2) == ["release-needed"]
    assert lease_of(shop, buyer).paid_msat == 6000
    assert buyer.release(one, 0) == ["released"]
    assert buyer.top_up(three, 2).paid_msat == 14_000
    assert buyer.pay(text_of(shop, two), 3) == ["payment-error-token-spent"]


def test_a_buyer_that_never_releases_is_served_two_slices_and_disputed():
    shop, buyer, [_, two] = opened(2, 4)
    moved = shop.move(buyer, 40 * MIB, chunk=MIB)
    assert moved <= 8 * MIB  # six sat, a free MiB, the grace and what is on its way
    shop.wait(700)
    assert lease_of(shop, buyer).reason == "unpaid"
    assert claims(shop) == []
    shop.wait(700)
    told = claims(shop)
    assert len(told) == 2
    assert told[1].secrets == tuple(proof.secret for proof in two)
    assert [claim.before_msat for claim in told] == [0, 2000]
    assert told[0].other_relays == ()
    assert not any(two[0].c in text for text in shop_texts(shop))


def claims(shop):
    return [m for to, m in shop.inbox if to == JUDGE_KEY and isinstance(m, Claim)]


def shop_texts(shop):
    return [render_message(m) for to, m in shop.inbox if to == JUDGE_KEY]


# Releases


def test_a_release_is_answered_the_same_each_time_and_redeemed_once():
    shop, buyer, [one, _] = opened(2, 4)
    assert buyer.release(one, 0) == ["released"]
    assert buyer.release(one, 0) == ["released"]
    shop.start()
    assert buyer.release(one, 0) == ["released"]
    buyer.close()
    assert buyer.release(one, 0) == ["released"]
    shop.wait(10)
    assert shop.wallet.balance() == 2
    assert buyer.release(one, 0) == ["released"]
    assert len(shop.wallet.asked) == 1


def test_releases_that_are_none_change_nothing():
    shop, buyer, [one, two] = opened(2, 4)
    before = dict(shop.disk)
    wrong = sign_secrets((proof.secret for proof in two), buyer.secret)
    alien = sign_secrets((proof.secret for proof in one), secret(9))
    assert buyer.release(one, 0, sigs=wrong) == ["release-refused"]
    assert buyer.release(one, 0, sigs=alien) == ["release-refused"]
    assert buyer.release(one, 0, sigs=(*wrong, *wrong)) == ["release-refused"]
    assert buyer.release(one, 7) == ["release-refused"]
    assert buyer.release(one, 0, lease_id="ab" * 16) == ["release-refused"]
    thief = EscrowBuyer(shop, "thief")
    thief.lease_id = buyer.lease_id
    good = sign_secrets((proof.secret for proof in one), buyer.secret)
    assert thief.release(one, 0, sigs=good) == ["release-refused"]
    assert shop.disk == before
    assert shop.wallet.balance() == 0


def test_released_money_is_redeemed_by_two_signatures_and_the_rest_is_the_buyers_again():
    shop, buyer, [one, _] = opened(2, 4)
    shop.move(buyer, 2 * MIB)
    buyer.release(one, 0)
    buyer.close()
    shop.wait(4 * 86_400 + 100)
    found = books(shop)
    assert found.wallet == 2
    assert found.lost == 0
    assert found.earned + found.unused == 2000


def test_what_was_not_used_is_given_back_at_once_and_only_to_the_buyer():
    shop, buyer, [one, two] = opened(2, 4)
    shop.move(buyer, 2 * MIB)
    back = [Return(lease_id=buyer.lease_id, seq=seq) for seq in (0, 1, 2)]
    assert buyer.say(back[1]) == []  # in use yet
    buyer.close()
    assert buyer.notice(back[0]) == ["release-refused"]  # it was used
    assert buyer.notice(back[2]) == ["release-refused"]
    thief = EscrowBuyer(shop, "thief")
    assert thief.say(back[1]) == []
    [release] = buyer.say(back[1])
    shop.start()
    assert buyer.say(back[1]) == [release]
    for proof, sig in zip(two, release.sigs, strict=True):
        own = signatures_of(sign_inputs((proof,), buyer.secret)[0].witness)
        lock = parse_lock(proof.secret)
        assert lock is not None
        assert may_spend(lock, proof.secret.encode(), (sig, *own), START)
    assert buyer.release(one, 0) == ["released"]
    assert buyer.release(two, 1) == ["release-refused"]
    shop.wait(10)
    found = books(shop)
    assert (found.wallet, found.lost) == (2, 0)
    assert found.earned + found.unused == 2000


# Verdicts


def disputed():
    """Two payments, used, and claimed from the arbiter."""
    shop, buyer, shown = opened(2, 4)
    shop.move(buyer, 8 * MIB, chunk=MIB)
    shop.wait(700)
    shop.wait(700)
    return shop, buyer, shown


def verdict(shop, proofs, state, *, by=JUDGE, sigs=None):
    secrets = sorted(proof.secret for proof in proofs)
    made = sign_secrets(secrets, by) if sigs is None else sigs
    message = Verdict(
        lease_id="00" * 16, payment=case_id(secrets), state=state, sigs=made if state else ()
    )
    shop.alive(lambda: shop.step(Heard(public_key(by), render_message(message))))


def test_a_verdict_counts_only_by_the_arbiter_and_with_its_signatures():
    shop, buyer, [one, two] = disputed()
    verdict(shop, one, "seller", by=secret(3))
    verdict(shop, one, "seller", sigs=())
    verdict(shop, one, "seller", sigs=sign_secrets((two[0].secret,), JUDGE))
    verdict(shop, buyer.proofs(2), "seller")
    shop.wait(10)
    assert shop.wallet.balance() == 0
    assert shop.seller.counters["verdict on nothing"] == 2
    assert shop.seller.counters["bad verdict"] == 2
    verdict(shop, one, "seller")
    verdict(shop, one, "buyer")
    verdict(shop, two, "buyer", sigs=())
    verdict(shop, two, "seller")
    shop.wait(10)
    found = books(shop)
    assert found.wallet == 2
    assert found.lost == 4000
    assert not [value for (space, _), value in shop.disk.items() if space == "sold_dispute"]


def test_the_arbiter_is_asked_again_until_it_decides_through_any_restart():
    shop, _, [one, _] = disputed()
    told = len(claims(shop))
    verdict(shop, one, "open", sigs=())
    shop.wait(300)
    assert len(claims(shop)) == told
    shop.start()
    assert len(claims(shop)) == told + 2
    shop.wait(86_400)
    shop.wait(700)
    assert not shop.seller.leases  # long forgotten, and claimed yet
    before = len(claims(shop))
    shop.wait(700)
    assert len(claims(shop)) == before + 2
    verdict(shop, one, "seller")
    shop.wait(10)
    assert books(shop).wallet == 2


# The arbiter


def locked(seller=1, buyer=2, judge=JUDGE_KEY, ends=WEEK // 2, amounts=(1, 2)):
    lock = Parties(key(seller), key(buyer), judge, int(START) + ends).lock
    return Shop(PayMode.ESCROW).mint.issue(amounts, lock)


def claim(proofs, **changes):
    made = Claim(
        lease_id="ab" * 16,
        secrets=tuple(proof.secret for proof in proofs),
        mint="https://mint.example",
        sat=3,
        before_msat=0,
        credit_msat=3000,
        billable=2 * MIB,
        ms=0,
        due_msat=2000,
        paid_msat=3000,
        quote="00" * 32,
    )
    return structs.replace(made, **changes)


def at(seconds=0.0):
    return replace(moment(int(START + seconds)), now=seconds)


def tell(judge, sender, message, seconds=0.0):
    """Keeps, and what was told to whom."""
    found = judge.step(Heard(key(sender), render_message(message)), at(seconds))
    keeps = [e for e in found if isinstance(e, Keep)]
    told = [(e.to, parse_message(e.text)) for e in found if isinstance(e, Tell)]
    assert found[: len(keeps)] == keeps
    return keeps, told


def test_a_case_is_kept_and_both_are_told_that_it_is_open():
    judge, proofs = Arbiter(JUDGE), locked()
    keeps, told = tell(judge, 1, claim(proofs))
    assert len(keeps) == 1
    assert [(to, m.state, m.sigs) for to, m in told] == [(key(1), "open", ()), (key(2), "open", ())]
    assert tell(judge, 1, claim(proofs))[0] == []
    keeps, told = tell(judge, 2, claim(proofs, due_msat=10, text="it was slow"), 5.0)
    assert len(keeps) == 1
    assert [to for to, _ in told] == [key(2)]
    assert {side: c.due_msat for side, c in judge.cases[0].claims.items()} == {
        "seller": 2000,
        "buyer": 10,
    }


@pytest.mark.parametrize(
    ("sender", "proofs"),
    [
        (3, locked()),  # no party
        (1, locked(judge=key(8))),  # another's case
        (1, locked(ends=-10)),
        (1, locked(ends=60 * 86_400)),
        (1, Shop().mint.issue((1,))),
        (1, (*locked(), *locked(buyer=3))),
        (1, Shop().mint.issue((1,), Lock("02" + key(1), int(START) + 900, ("02" + key(2),)))),
    ],
)
def test_claims_that_are_none_are_dropped_and_counted(sender, proofs):
    judge = Arbiter(JUDGE)
    assert tell(judge, sender, claim(proofs)) == ([], [])
    assert judge.cases == ()
    assert sum(judge.counters.values()) == 1


def test_only_some_sellers_are_heard_if_that_is_wanted():
    judge = Arbiter(JUDGE, [key(5)])
    assert tell(judge, 1, claim(locked())) == ([], [])
    assert tell(judge, 2, claim(locked(seller=5)))[0]


def verdict_in(text):
    """The verdict in a message."""
    found = parse_message(text)
    assert isinstance(found, Verdict)
    return found


def test_the_winner_alone_is_told_signatures_which_spend_with_his_own():
    judge, proofs = Arbiter(JUDGE), locked()
    tell(judge, 1, claim(proofs))
    case = judge.cases[0].id
    effects = judge.decide(case[:12], "seller", at())
    assert isinstance(effects[0], Keep)
    told = {e.to: verdict_in(e.text) for e in effects if isinstance(e, Tell)}
    assert told[key(2)].sigs == ()
    assert judge.decide(case, "seller", at())[0] == effects[1]  # the same again
    with pytest.raises(UserError, match="stands"):
        judge.decide(case, "buyer", at())
    by_secret = sorted(proofs, key=lambda proof: proof.secret)
    for proof, sig in zip(by_secret, told[key(1)].sigs, strict=True):
        lock, text = parse_lock(proof.secret), proof.secret.encode()
        assert lock is not None
        own = signatures_of(sign_inputs((proof,), secret(1))[0].witness)
        assert may_spend(lock, text, (sig, *own), START)
        assert not may_spend(lock, text, (sig,), START)  # nobody alone
        assert not may_spend(lock, text, (sig, sig), START)


def test_a_decision_is_told_again_after_a_restart_and_none_is_made_too_late():
    judge, proofs = Arbiter(JUDGE), locked()
    [kept], _ = tell(judge, 1, claim(proofs))
    kept = judge.decide(judge.cases[0].id, "buyer", at())[0]
    assert isinstance(kept, Keep)
    again = Arbiter(JUDGE)
    again.restore({kept.key: kept.value})
    _, told = tell(again, 2, claim(proofs), WEEK)  # also after the lock
    assert told[0][1].state == "buyer"
    assert len(told[0][1].sigs) == 2
    late = Arbiter(JUDGE)
    tell(late, 1, claim(proofs))
    with pytest.raises(UserError, match="over"):
        late.decide(late.cases[0].id, "seller", at(WEEK))
    with pytest.raises(UserError, match="no case"):
        late.decide("ffff", "seller", at())
    late.step(Tick(), at(2 * WEEK))
    assert late.cases == ()


def test_a_flood_of_claims_is_bounded_of_one_and_of_all(monkeypatch):
    monkeypatch.setattr(bench, "MAX_CASES", 40)
    judge, refused = Arbiter(JUDGE), 0
    for number in range(20):
        keeps, told = tell(judge, 1, claim(locked(buyer=100 + number, amounts=(1,))))
        refused += not keeps
        assert keeps or [(to, m.code) for to, m in told] == [(key(1), "too-many-claims")]
    assert refused == 20 - bench.MAX_OF_ONE
    for number in range(50):
        tell(judge, 200 + number, claim(locked(seller=200 + number, buyer=300 + number)))
    assert len(judge.cases) == 40
    # Somebody who tells another story each second is heard now and then.
    mine = judge.cases[-1]
    writes = 0
    story = next(iter(mine.claims.values()))
    for second in range(90):
        other = structs.replace(story, text=str(second))
        sender = next(n for n in range(1, 260) if key(n) in (mine.seller, mine.buyer))
        writes += len(tell(judge, sender, other, float(second))[0])
    assert writes <= 4


def test_a_damaged_case_is_said():
    with pytest.raises(PeerMisbehaved, match="not a case"):
        Arbiter(JUDGE).restore({"aa": {"id": 1}})


def test_a_lock_of_other_templates_has_no_parties():
    with pytest.raises(PeerMisbehaved):
        parties_of(proof.secret for proof in Shop().mint.issue((1,)))
    with pytest.raises(PeerMisbehaved):
        parties_of(())
