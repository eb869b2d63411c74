"""What a buyer, a mint or chance may do to a seller: each row of the table of frauds that hits one."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_address

import pytest
from coincurve import PrivateKey
from msgspec import structs

from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.conditions import Lock, lock_key
from nostrvpn.cashu.token import Token, parse_token, render_token
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.market import payments
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.effects import Heard, Redeem, Tick
from nostrvpn.market.introduction import _digest, introduced, prepare_request
from nostrvpn.market.messages import (
    Close,
    Fund,
    Low,
    Notice,
    Quote,
    Receipt,
    TopUp,
    Usage,
    render_message,
)
from nostrvpn.market.money_in import redeem_by
from nostrvpn.market.offer import Offer
from nostrvpn.market.payment_check import MAX_PROOFS
from nostrvpn.market.saying import request_of
from nostrvpn.market.terms import MIB, PayMode, Price
from nostrvpn.market.trials import TrialBudget
from nostrvpn.market.work import with_work
from nostrvpn.nostr.event import public_key
from tests.cashu_mint import MemoryMint
from tests.market_shop import (
    PAYMENT,
    PLACE,
    SETTINGS,
    START,
    TERMS,
    URL,
    Buyer,
    Shop,
    books,
    lease_of,
)

SPENT, INVALID = "payment-error-token-spent", "payment-error-invalid-token"
LOCKED, PLAIN = PayMode.LOCKED, PayMode.PLAIN


def opened(mode=LOCKED, paid=(8,), **settings):
    """A shop with one buyer whose lease is paid."""
    shop = Shop(mode, settings=replace(SETTINGS, **settings))
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund(buyer.token(*paid))
    return shop, buyer


def asked(shop):
    """What the wallet was asked, and the mint."""
    return list(shop.wallet.asked), [call for call in shop.mint.calls if "swap" in call]


# Token replayed at many providers, double spend


def test_plain_token_spent_elsewhere_serves_nothing():
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(8)
    thief = Shop(PLAIN)
    thief.mints = shop.mints
    thief.wallet.mints = shop.mints
    other = Buyer(thief)
    other.ask()
    other.fund(token)
    assert buyer.pay(token) == [SPENT]
    assert buyer.pay(token) == [SPENT]
    assert len(shop.wallet.asked) == 1
    assert shop.applied == {}
    assert books(shop).accounts == {}


def test_plain_token_paid_twice_here_is_credited_once():
    shop, buyer = opened(PLAIN)
    token = buyer.token(4)
    assert buyer.top_up(token, 1).paid_msat == 12_000
    assert buyer.pay(token, 2) == [SPENT]
    assert lease_of(shop, buyer).paid_msat == 12_000
    assert shop.wallet.balance() == 12


@pytest.mark.parametrize("redeemed", [False, True])
def test_locked_token_shown_twice_is_credited_once(redeemed):
    shop, buyer = opened(LOCKED)
    token = buyer.token(4, locktime=int(START) + 14_000)
    buyer.top_up(token, 1)
    shop.move(buyer, 13 * MIB)
    if redeemed:
        shop.wait(7100)  # the half of the time that the lock is good for
        assert shop.wallet.balance() == 12
    assert buyer.pay(token, 2) == [SPENT]
    other = Buyer(shop, "other")
    other.ask(refund=buyer.refund)
    assert other.pay(token) == [SPENT]
    shop.start()
    other.ask()
    assert other.pay(token) == [SPENT]
    has = "wallet" if redeemed else "locked"
    assert books(shop).accounts[f"{has}:{shop.mint.url}"] == 12_000


def test_one_proof_of_a_payment_shown_before_spoils_it():
    shop, buyer = opened(LOCKED)
    lock = Lock(buyer.quote.receiver, int(START) + 3600, (buyer.refund,))
    one, two = shop.mint.issue((2, 4), lock)
    buyer.top_up(render_token(Token(shop.mint.url, (one,))), 1)
    assert buyer.pay(render_token(Token(shop.mint.url, (one, two))), 2) == [SPENT]
    assert lease_of(shop, buyer).paid_msat == 10_000


# Token locked to the attacker, HTLC, expiring keyset, fake mint


def strange(kind, shop, buyer):
    good = lock = Lock(buyer.quote.receiver, int(START) + 3600, (buyer.refund,))
    match kind:
        case "to somebody else":
            lock = replace(lock, key=buyer.refund)
        case "two of two":
            lock = replace(lock, pubkeys=(buyer.refund,), n_sigs=2)
        case "either of two":
            lock = replace(lock, pubkeys=(buyer.refund,))
        case "too short":
            lock = replace(lock, locktime=int(START) + 1700)
        case "for ever":
            lock = replace(lock, locktime=None, refund=())
        case "for years":
            lock = replace(lock, locktime=int(START) + 10**8)
    proofs = shop.mint.issue((4,), None if kind == "not locked" else lock)
    match kind:
        case "hash lock":
            secret = proofs[0].secret.replace('"P2PK"', '"HTLC"')
            proofs = (replace(proofs[0], secret=secret),)
        case "no proof of the mint":
            proofs = (replace(proofs[0], dleq=None),)
        case "higher amount":
            proofs = (replace(proofs[0], amount=64),)
        case "fake mint":
            proofs = MemoryMint("https://mint.example/fake").issue((4,), good)
    return render_token(Token(shop.mint.url, proofs))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("to somebody else", "locked-token"),
        ("two of two", "locked-token"),
        ("either of two", "locked-token"),
        ("not locked", "locked-token"),
        ("hash lock", "locked-token"),
        ("for ever", "locked-token"),
        ("for years", "locked-token"),
        ("too short", "lock-too-short"),
        ("no proof of the mint", INVALID),
        ("higher amount", INVALID),
        ("fake mint", "unknown-keyset"),
    ],
)
def test_money_that_is_not_ours_alone_is_refused_before_anything(kind, code):
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    before = dict(shop.disk)
    assert buyer.pay(strange(kind, shop, buyer)) == [code]
    assert shop.disk == before
    assert asked(shop) == ([], [])
    assert shop.applied == {}
    assert buyer.fund(buyer.token(4)).paid_msat == 4000  # the same seq, with money


def test_plain_token_locked_to_somebody_else_is_refused_unswapped():
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    proofs = shop.mint.issue((4,), Lock(buyer.refund))
    assert buyer.pay(render_token(Token(shop.mint.url, proofs))) == ["locked-token"]
    assert asked(shop) == ([], [])


def test_keyset_that_ends_before_the_lock_is_refused():
    shop = Shop(LOCKED)
    shop.mint.rotate(final_expiry=int(START) + 3000)
    shop.seller.mints = {shop.mint.url: shop.mint.keys}
    buyer = Buyer(shop)
    buyer.ask()
    assert buyer.pay(buyer.token(4)) == ["expiring-keyset"]


def test_money_is_redeemed_before_its_keyset_ends():
    shop = Shop(LOCKED)
    shop.mint.rotate(final_expiry=int(START) + 20_000)
    shop.seller.mints = {shop.mint.url: shop.mint.keys}
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund(buyer.token(4, locktime=int(START) + 19_990))
    shop.move(buyer, 5 * MIB)
    while not shop.wallet.balance():
        shop.wait(300)
    assert shop.now < 19_990 - 600
    assert books(shop).lost == 0


@pytest.mark.parametrize("url", ["https://evil.example", "https://mint.example.evil.example"])
def test_token_of_another_mint_is_refused(url):
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(4, mint=MemoryMint(url))
    assert buyer.pay(token) == ["payment-error-mint-not-accepted"]


# Refund race at the locktime


@pytest.mark.parametrize("skew", [0, -300, 300])
def test_locked_money_is_redeemed_in_time_whatever_the_clock(skew):
    shop = Shop(LOCKED)
    shop.skew = skew
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund(buyer.token(4, locktime=int(START) + 2400))
    while not shop.wallet.balance():
        shop.wait(30)
    assert shop.now <= 2400 - 600
    assert books(shop).lost == 0


def test_locked_money_is_redeemed_ten_minutes_before_anything_ends():
    mint = MemoryMint()
    lock = Lock(SETTINGS.receiver, int(START) + 900, (SETTINGS.receiver,))
    assert redeem_by(mint.issue((4,), lock), mint.keysets, START)[0] == START + 300
    late = replace(lock, locktime=int(START) + 100_000)
    assert redeem_by(mint.issue((4,), late), mint.keysets, START)[0] == START + 12 * 3600
    mint.rotate(final_expiry=int(START) + 1000)
    assert redeem_by(mint.issue((4,), late), mint.keysets, START)[0] == START + 400


def test_locked_money_is_redeemed_at_a_sum_in_one_swap():
    shop, buyer = opened(LOCKED, (64,))
    for seq in (1, 2):
        buyer.top_up(buyer.token(64), seq)
    shop.wait(30)
    assert asked(shop) == ([], [])
    buyer.top_up(buyer.token(8), 3)
    shop.wait(30)
    assert len(asked(shop)[1]) == 1
    assert shop.wallet.balance() == 200


# Trial farming


def farm(shop, names, source=None):
    """How many of these may try for nothing."""
    served = 0
    for name in names:
        buyer = Buyer(shop, name)
        buyer.ask()
        if buyer.quote.free_bytes:
            buyer.fund("")
            if source is not None:
                shop.source = source
            served += shop.move(buyer, 2 * MIB)
        shop.wait(130)
    return served


def test_trial_farming_with_fresh_keys_from_one_network():
    shop = Shop(LOCKED)
    most = MIB + SETTINGS.terms.grace_bytes + 128 * 1024  # one reading late
    few = farm(shop, [f"a{n}" for n in range(3)], ip_address("192.0.2.1"))
    assert 3 * MIB <= few <= 3 * most
    more = farm(shop, [f"b{n}" for n in range(20)], ip_address("192.0.2.99"))
    assert more <= 20 * (SETTINGS.terms.grace_bytes + 2 * 128 * 1024)
    assert farm(shop, ["c"], ip_address("198.51.100.1")) >= MIB


def test_trial_farming_is_bounded_by_the_hour():
    shop = Shop(LOCKED, settings=replace(SETTINGS, trials=TrialBudget(hour=2, network_day=100)))
    quotes = [Buyer(shop, f"f{n}") for n in range(4)]
    for buyer in quotes:
        buyer.ask()
    answers = [buyer.say(Fund(lease_id=buyer.lease_id, seq=0)) for buyer in quotes]
    codes = [[m.code for m in told if isinstance(m, Notice)] for told in answers]
    assert codes == [[], [], ["trial-denied"], ["trial-denied"]]
    shop.wait(3700)
    late = Buyer(shop, "late")
    assert late.ask().free_bytes == MIB


def test_trial_is_not_given_again_with_a_new_lease():
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund("")
    shop.move(buyer, MIB // 2)
    buyer.close()
    shop.start()
    assert buyer.ask(wg_pub=Buyer(shop, "x").wg_pub).free_bytes == 0
    assert buyer.pay("") == ["trial-denied"]


def test_trial_asks_for_work_if_the_offer_does():
    shop = Shop(LOCKED, settings=replace(SETTINGS, pow_bits=8))
    buyer = Buyer(shop)
    request = buyer.request()
    done = with_work(request, buyer.pubkey, shop.seller.pubkey, 8)
    assert done is not None
    elsewhere = with_work(request, buyer.pubkey, "f" * 64, 8)
    assert elsewhere is not None
    assert buyer.notice(elsewhere) == ["work-needed"]  # 1 of 256: fixed by the keys of this test
    stranger = Buyer(shop, "stranger")
    assert stranger.notice(done) == ["work-needed"]
    assert buyer.say(done)[0].lease_id


# Stolen lease


def test_stolen_lease_by_another_key():
    shop, buyer = opened(LOCKED)
    thief = Buyer(shop, "thief")
    thief.quote, thief.lease_id = buyer.quote, buyer.lease_id
    for message in (
        Fund(lease_id=buyer.lease_id, seq=0, token=""),
        TopUp(lease_id=buyer.lease_id, seq=1, token=thief.token(4)),
        Close(lease_id=buyer.lease_id),
        Low(lease_id=buyer.lease_id),
    ):
        assert thief.say(message) == []
    assert shop.seller.counters["lease of somebody else"] == 4
    assert thief.notice(thief.request(wg_pub=buyer.wg_pub)) == ["policy-denied"]


def test_stolen_lease_through_another_tunnel():
    shop, buyer = opened(LOCKED)
    other = Buyer(shop, "other")
    other.ask()
    other.fund(other.token(8))
    own, others = (shop.applied[b.wg_pub].ipv6 for b in (buyer, other))
    assert buyer.say(Low(lease_id=buyer.lease_id), at_tunnel=others) == []
    assert isinstance(buyer.say(Low(lease_id=buyer.lease_id), at_tunnel=own)[0], Usage)


# The mint goes away


def test_mint_down_locked_goes_on_up_to_a_cap():
    shop, buyer = opened(LOCKED, (64,))
    shop.mint.down = True
    seq, codes = 1, list[str]()
    while not codes and seq < 60:
        codes = buyer.pay(buyer.token(64), seq)
        shop.wait(5)
        seq += 1
    assert codes == ["mint-down"]
    assert 2000 <= 64 * (seq - 1) <= 2064
    shop.mint.down = False
    shop.wait(400)
    assert buyer.top_up(buyer.token(64), seq - 1).paid_msat == 64_000 * seq
    assert shop.wallet.balance() >= 2000


@pytest.mark.parametrize("trouble", ["down", "rate_limited", "pending"])
def test_mint_in_trouble_plain_fails_closed_and_is_credited_later(trouble):
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(8)
    proofs = set(_ys(token))
    if trouble == "pending":
        shop.mint.pending |= proofs
    else:
        setattr(shop.mint, trouble, True)
    assert buyer.pay(token) == ["payment-pending"]
    shop.wait(3)
    shop.start()
    assert "payment-pending" in buyer.pay(token)
    assert shop.applied == {}
    shop.mint.pending -= proofs
    shop.mint.down = shop.mint.rate_limited = False
    shop.wait(300)
    assert buyer.fund(token).paid_msat == 8000
    assert shop.wallet.balance() == 8


def test_mint_that_redeems_is_taken_beyond_the_cap():
    shop, buyer = opened(LOCKED, (64,))
    for seq in range(1, 41):
        buyer.top_up(buyer.token(64), seq)
    assert lease_of(shop, buyer).paid_msat == 41 * 64_000


def _ys(token):
    return [y_of(proof.secret) for proof in parse_token(token).proofs]


def test_mint_is_asked_ever_more_seldom():
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    shop.mint.rate_limited = True
    buyer.pay(buyer.token(8))
    for _ in range(600):
        shop.wait(1)
    assert 5 < len(shop.wallet.asked) < 12


def test_mint_down_while_leases_end_gives_for_all_of_them_once_it_is_back():
    """Also for the one that ended while the money of another was being swapped."""
    shop, first = opened(LOCKED, (2,))
    second = Buyer(shop, "second")
    second.ask()
    shop.mint.down = True
    shop.move(first, 10 * MIB)  # all that was paid: nothing is to be given back
    first.close()
    shop.wait(1)  # its money is asked for
    second.fund(second.token(2))
    shop.move(second, 10 * MIB)
    second.close()
    shop.mint.down = False
    shop.wait(10)
    assert shop.wallet.balance() == 4


def test_mint_that_refuses_what_it_signed_costs_only_that():
    shop, buyer = opened(LOCKED, (8,))
    bad = buyer.token(4)
    buyer.top_up(bad, 1)
    shop.mint.spent |= set(_ys(bad))
    buyer.close()
    for _ in range(5):
        shop.wait(60)
    found = books(shop)
    assert (found.lost, found.wallet) == (4000, 8)
    shop.start()
    assert books(shop).lost == 4000


# Relays drop messages


def test_relay_drops_messages_and_repeats_get_the_same_answer():
    shop, buyer = opened(LOCKED)
    request = buyer.request(key=lease_of(shop, buyer).request.key)
    assert buyer.say(request)[0] == buyer.quote
    token = buyer.token(4)
    first = buyer.top_up(token, 1)
    shop.start()
    assert buyer.top_up(token, 1) == first
    late = Fund(lease_id=buyer.lease_id, seq=0, token="")
    assert buyer.say(late)[0].access == first.access
    assert lease_of(shop, buyer).paid_msat == 12_000
    receipt = buyer.close()
    shop.start()
    assert buyer.close() == receipt


def test_payments_may_arrive_in_another_order():
    _, buyer = opened(LOCKED)
    one, two = buyer.token(2), buyer.token(4)
    assert buyer.top_up(two, 2).paid_msat == 12_000
    assert buyer.top_up(one, 1).paid_msat == 14_000


# Crash between swap and persist; concurrent top-up and close


def test_crash_between_swap_and_persist():
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(8)
    text = render_message(Fund(lease_id=buyer.lease_id, seq=0, token=token))
    effects = shop.seller.step(Heard(buyer.pubkey, text), shop.moment)
    [swap] = [e for e in effects if isinstance(e, Redeem)]
    shop.perform([e for e in effects if e is not swap])
    shop.wallet.carry_out(swap)  # the mint did it, and nobody took the answer
    shop.start()
    assert buyer.fund(token).paid_msat == 8000
    assert len(asked(shop)[1]) == 1


def test_concurrent_top_up_and_close():
    shop, buyer = opened(PLAIN)
    shop.mint.down = True
    token = buyer.token(4)
    assert buyer.pay(token, 1) == ["payment-pending"]
    close = Close(lease_id=buyer.lease_id)
    assert buyer.say(close) == []  # service ends, the money is on its way
    assert buyer.notice(close) == ["ending"]
    assert shop.applied == {}
    assert buyer.pay(buyer.token(2), 2) == ["closed"]
    shop.mint.down = False
    shop.wait(300)
    receipt = buyer.close()
    assert (receipt.paid_msat, receipt.due_msat, receipt.refund_sat) == (12_000, 0, 12)
    assert books(shop).wallet == 0


def test_double_spend_race_of_one_token_in_two_leases():
    shop = Shop(PLAIN)
    one, two = Buyer(shop, "one"), Buyer(shop, "two")
    one.ask()
    two.ask()
    shop.mint.down = True
    token = one.token(8)
    assert one.pay(token) == ["payment-pending"]
    assert two.pay(token) == [SPENT]
    shop.mint.down = False
    shop.wait(60)
    assert one.fund(token).paid_msat == 8000
    assert shop.wallet.balance() == 8


# The price


def test_price_raise_leaves_running_leases_alone():
    shop, buyer = opened(LOCKED)
    dear = replace(SETTINGS.terms, price=Price(MIB, 50_000))
    shop.seller.settings = shop.settings = replace(SETTINGS, terms=dear)
    shop.move(buyer, 3 * MIB)
    shop.start()
    buyer.top_up(buyer.token(4), 1)
    shop.move(buyer, MIB)
    receipt = buyer.close()
    assert receipt.due_msat == 3000
    assert Buyer(shop, "next").ask().step_msat == 50_000


def test_quote_expires():
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(4)
    shop.now += 61
    assert buyer.pay(token) == ["quote-expired"]
    shop.step(Tick())
    assert buyer.pay(token) == ["unknown-lease"]
    buyer.ask()
    assert buyer.fund(token).paid_msat == 4000


def test_unwanted_buyers_are_refused():
    shop = Shop(LOCKED)
    good, bad = Buyer(shop, "good"), Buyer(shop, "bad")
    shop.seller.settings = replace(SETTINGS, deny=frozenset({bad.pubkey}))
    assert bad.notice(bad.request()) == ["policy-denied"]
    good.ask()
    shop.seller.settings = replace(SETTINGS, allow=frozenset({bad.pubkey}))
    assert Buyer(shop, "third").notice(Buyer(shop, "third").request()) == ["policy-denied"]
    bad.ask()


def introduction(buyer, shop, root, *, to=None):
    """A request in which a lasting key vouches for the buyer's."""
    request = buyer.request()
    digest = _digest(request.key, buyer.pubkey, to or shop.seller.pubkey)
    signature = PrivateKey(root.reveal()).sign_schnorr(digest, bytes(32)).hex()
    return structs.replace(request, who=root.public_key, who_sig=signature)


def test_friends_are_known_whatever_key_their_lease_has():
    friend, other = RootSecret(sha256(b"friend").digest()), RootSecret(sha256(b"other").digest())
    shop = Shop(LOCKED, settings=replace(SETTINGS, allow=frozenset({friend.public_key})))
    buyer, thief = Buyer(shop, "fresh"), Buyer(shop, "thief")
    assert buyer.notice(buyer.request()) == ["policy-denied"]
    assert thief.notice(introduction(thief, shop, other)) == ["policy-denied"]
    # Said for another lease's key, to another seller, or with a signature that is none.
    said = introduction(buyer, shop, friend)
    stolen = structs.replace(said, wg_pub=thief.wg_pub, refund=thief.refund)
    assert thief.notice(stolen) == ["policy-denied"]
    assert buyer.notice(introduction(buyer, shop, friend, to="ab" * 32)) == ["policy-denied"]
    for change in ({"who_sig": ""}, {"who_sig": "0" * 128}, {"who": other.public_key}):
        bent = structs.replace(introduction(buyer, shop, friend), **change)
        assert buyer.notice(bent) == ["policy-denied"]
    assert isinstance(buyer.say(said)[0], Quote)


def test_a_buyer_that_is_asked_to_says_who_it_is():
    """And else nobody could tell: the request holds nothing that lasts."""
    root, shop = RootSecret(sha256(b"friend").digest()), Shop(LOCKED)
    offer = Offer(shop.seller.pubkey, "home", TERMS, lock_key(PAYMENT), event_id="0" * 64)
    for as_me in (True, False):
        lease = BoughtLease("ab" * 16, 3, offer, PLACE.key, lock_key(PAYMENT), LOCKED, URL, 0)
        prepare_request(lease, root, (), as_me=as_me)
        request = request_of(lease, ())
        known = introduced(request, public_key(root.lease_key(3)), offer.seller)
        assert known == (root.public_key if as_me else "")
        assert (root.public_key in render_message(request)) is as_me


def test_who_is_denied_is_served_no_longer_and_gets_back_what_is_unused():
    """By the key of the lease, and by the one that vouched for it: then under every other key too."""
    root = RootSecret(sha256(b"nuisance").digest())
    for names in (lambda buyer: {buyer.pubkey}, lambda buyer: {root.public_key}):
        shop = Shop(LOCKED)
        buyer, good = Buyer(shop), Buyer(shop, "good")
        [quote] = buyer.say(introduction(buyer, shop, root))
        buyer.lease_id, buyer.quote = quote.lease_id, quote
        buyer.fund(buyer.token(8))
        good.ask()
        good.fund(good.token(8))
        shop.seller.settings = replace(SETTINGS, deny=frozenset(names(buyer)))
        shop.perform(shop.seller.end_unwelcome(shop.moment))
        receipt = buyer.until(Close(lease_id=buyer.lease_id), Receipt)
        assert (receipt.reason, receipt.refund_sat) == ("policy-denied", 8)
        assert lease_of(shop, good).is_live
        assert buyer.notice(introduction(buyer, shop, root)) == ["policy-denied"]


@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19, 2**255, None])
def test_a_wireguard_key_that_is_none_is_refused(point):
    """The kernel cannot hold it; one lease with it would stand in the way of all."""
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    raw = None if point is None else point.to_bytes(32, "little")
    buyer.wg_pub = PLACE.key if raw is None else b64encode(raw).decode()
    assert buyer.notice(buyer.request()) == ["policy-denied"]
    assert shop.seller.leases == ()


def test_work_for_a_trial_cannot_be_done_long_before():
    """Work is for one event of the offer, and those are published anew every ten minutes."""
    shop = Shop(LOCKED, settings=replace(SETTINGS, pow_bits=4, events=frozenset({"ab" * 32})))
    buyer = Buyer(shop)
    old, new = (
        with_work(buyer.request(offer_event=event), buyer.pubkey, shop.seller.pubkey, 4)
        for event in ("cd" * 32, "ab" * 32)
    )
    assert buyer.notice(old) == ["price-changed"]
    assert isinstance(buyer.say(new)[0], Quote)


def test_looking_at_made_up_tokens_costs_a_bounded_effort(monkeypatch):
    """A quote is free, and each proof that is shown takes a millisecond to check."""
    shop = Shop(LOCKED)
    good, thief = Buyer(shop), Buyer(shop, "thief")
    good.ask()
    good.fund(good.token(8))
    looked = []

    def look(_text, lease, *_rest):
        looked.append(lease.id)
        raise PeerMisbehaved("bad_token", "it is none")

    monkeypatch.setattr(payments, "examine", look)
    thief.ask()
    bad = "cashuB" + "x" * 400 * MAX_PROOFS
    said = [thief.notice(Fund(lease_id=thief.lease_id, seq=n, token=bad)) for n in range(1, 101)]
    small = "cashuB" + "x" * 400
    assert looked.count(thief.lease_id) <= 4
    said += [
        thief.notice(Fund(lease_id=thief.lease_id, seq=n, token=small)) for n in range(101, 150)
    ]
    assert said[-1] == ["too-busy"]
    # Who paid is heard meanwhile, and who pays for the first time a moment later.
    good.notice(TopUp(lease_id=good.lease_id, seq=9, token=small))
    assert looked[-1] == good.lease_id
    shop.now += 2
    new = Buyer(shop, "new")
    new.ask()
    new.notice(Fund(lease_id=new.lease_id, seq=1, token=small))
    assert looked[-1] == new.lease_id


def test_slice_is_bounded():
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    assert buyer.pay(buyer.token(64, 1)) == ["slice-too-large"]
