"""The market's shell against what is wrong with its store, its sellers and its host."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from base64 import b64encode
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from nostrvpn.config.model import Config
from nostrvpn.config.options import Options
from nostrvpn.control.market_schema import MARKET_COMMANDS, ExitSell
from nostrvpn.daemon import market_post
from nostrvpn.daemon.market_customer import MAX_WAITING, Customer
from nostrvpn.daemon.market_keysets import Keysets
from nostrvpn.daemon.market_post import Correspondent, MarketPost
from nostrvpn.daemon.market_premises import is_taken
from nostrvpn.daemon.market_service import MarketService
from nostrvpn.daemon.shop_commands import SHOP_COMMANDS, buyer_named
from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.errors import NostrvpnError, PeerMisbehaved
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.io.lock import StateLock
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.effects import Heard, Tell
from nostrvpn.market.sale import Sale
from nostrvpn.market.seller import settings_of
from nostrvpn.market.terms import PayMode
from nostrvpn.market.wish import Wish
from nostrvpn.nostr.event import Event, public_key

ROOT = RootSecret(bytes(31) + b"\x07")


def moment() -> Moment:
    return Moment(time.monotonic(), time.time(), Entropy(os.urandom(32)))


def fake_node(*routes: str, overlay: str = "10.64.0.0/16") -> Any:
    return SimpleNamespace(
        exits=SimpleNamespace(settings=SimpleNamespace(exit=None), is_wanted=False),
        settings=SimpleNamespace(relays=(), tunnel=SimpleNamespace(listen_port=51820)),
        membership=SimpleNamespace(roster=None),
        subnets=SimpleNamespace(used=frozenset({ip_network(overlay)})),
        routes=frozenset(map(ip_network, routes)),
        addresses=(),
        bought=(),
        sold=None,
    )


async def applied() -> bool:
    return True


class Reconciler:
    """Counts how often the kernel was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.bought = SimpleNamespace(read=lambda link: None)
        self.sold = SimpleNamespace(read=lambda: None)

    async def run(self, work: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        return work()


def fake_host(node: Any) -> Any:
    return SimpleNamespace(
        node=node,
        interface="nvpn0",
        config=Config(),
        root=ROOT,
        reconciler=Reconciler(),
        names=SimpleNamespace(answers_for=lambda who: SimpleNamespace(answer=None)),
        offer=lambda event: None,
        reconcile=lambda: None,
        applied=applied,
        moment=moment,
    )


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return cast("Options", SimpleNamespace(state_dir=str(tmp_path / "state")))


async def command(_name: str, _args: dict[str, object], _admin: bool) -> object:
    return {}


def service(options: Options) -> MarketService:
    return MarketService(cast("Any", fake_host(fake_node())), options, command)


def filled(options: Options, *records: Record) -> None:
    store = Store.open(f"{options.state_dir}/market.db")
    store.put(records)
    store.close()


async def balance(market: MarketService) -> object:
    return await market.call("wallet_balance", {})


async def test_what_cannot_be_opened_leaves_nothing_running_and_nothing_locked(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a wallet would work on, beside that of another daemon which then has the lock."""
    market, other = service(options), service(options)
    before = asyncio.all_tasks()
    with monkeypatch.context() as broken:
        broken.setattr(Customer, "start", lambda self: (_ for _ in ()).throw(NostrvpnError("no")))
        with pytest.raises(NostrvpnError, match="no"):
            await balance(market)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    await balance(other)
    await other.stop()
    with monkeypatch.context() as broken:
        broken.setattr(Customer, "__init__", lambda *_: (_ for _ in ()).throw(NostrvpnError("no")))
        with pytest.raises(NostrvpnError, match="no"):
            await balance(market)
    await balance(other)
    await other.stop()


@pytest.mark.parametrize("space", ["sold_lease", "bought_lease", "sale", "buyer", "sold_money"])
async def test_a_record_that_cannot_be_read_does_not_take_the_wallet_along(
    options: Options, space: str
) -> None:
    key = {"sale": "sale", "buyer": "wish"}.get(space, "a" * 32)
    filled(options, Record(space, key, {"of": "another version"}))
    market = service(options)
    assert await balance(market)
    assert await market.call("exit_purchase", {})
    await market.stop()


async def test_nothing_is_bought_that_the_user_does_not_use_any_more(options: Options) -> None:
    """The daemon was killed between ``exit off`` and the buyer's word of it."""
    filled(options, Record("buyer", "wish", Wish().to_json()))
    market = service(options)
    assert cast("Any", await market.call("exit_purchase", {}))["state"]
    async with asyncio.timeout(10):
        while True:
            document = cast("Any", await market.call("exit_purchase", {}))
            if document["state"] == "off":
                break
            await asyncio.sleep(0.01)
    await market.stop()
    store = Store.open(f"{options.state_dir}/market.db")
    assert store.get("buyer", "wish") is None
    store.close()


def test_addresses_of_the_mesh_and_of_networks_here_are_not_a_sellers() -> None:
    node = fake_node("192.168.1.0/24", "0.0.0.0/0", "198.18.0.0/16", "fd00:7::/64", "198.18.0.1/32")
    for text, is_ours in (
        ("10.64.3.3", True),
        ("fd00:7::5", True),
        ("192.168.1.1", True),
        ("198.18.0.1", False),  # where another network of this host sells, or our own link leads
        ("fd00:8::1", False),
    ):
        assert is_taken(node, [ip_address("fd00:9::1"), ip_address(text)]) is is_ours


class Waiting:
    """A customer with one seller, whose kernel does not answer."""

    def __init__(self) -> None:
        self.customer = Customer.__new__(Customer)
        self.seller, self.counters = "ab" * 32, Counter[str]()
        made = cast("Any", self.customer)
        deal = SimpleNamespace(lease=SimpleNamespace(correspondents=(self.seller, "")))
        made.buyer = SimpleNamespace(deals=(deal,), counters=self.counters)
        made._hearing, made._waiting, made._tasks = asyncio.Lock(), 0, Supervisor()
        made._soundings = SimpleNamespace(close=lambda: None)
        made._keysets = Keysets(made, lambda: None)
        made._count = asyncio.Event().wait
        made._machine = SimpleNamespace(offer=lambda event: True)

    def hear(self, sender: str, times: int) -> None:
        for _ in range(times):
            self.customer._heard(Heard(sender, "{}", None))

    async def stop(self) -> None:
        await self.customer.stop()


async def test_messages_that_wait_for_the_kernel_are_few_and_of_the_seller() -> None:
    """Whoever knows a lease's key, as relays do, may write to it as often as it likes."""
    room = Waiting()
    room.hear("cd" * 32, 1000)
    assert len(room.customer._tasks) == 0
    assert room.counters["unknown_sender"] == 1000
    room.hear(room.seller, 1000)
    assert len(room.customer._tasks) == MAX_WAITING
    await asyncio.sleep(0)
    await room.stop()
    assert room.counters["too_busy"] == 1000 - MAX_WAITING


async def test_a_flood_of_wraps_costs_a_bounded_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows an offer may write to its seller; each wrap takes a millisecond or two to open."""
    opened, clock = list[Event](), [0.0]

    def refuse(event: Event, _secret: bytes) -> None:
        opened.append(event)
        raise PeerMisbehaved("bad_wrap", "no wrap")

    monkeypatch.setattr(market_post, "open_wrapped", refuse)
    post = MarketPost(cast("Any", None), lambda: Moment(clock[0], time.time(), Entropy(bytes(32))))
    keys = [public_key(bytes(31) + bytes([n])) for n in (1, 2)]
    for n in (1, 2):
        post.add(
            Correspondent(bytes(31) + bytes([n]), "lane", lambda heard: None, lambda tell: None)
        )
    wraps = [Event("00" * 32, keys[0], 0, 1059, (("p", key),), "", "00" * 64) for key in keys]
    for _ in range(1000):
        post._wrapped(wraps[0], "wss://relay.example")
    assert len(opened) == market_post.OPENED_BURST
    assert post.counters["crowded"] == 1000 - market_post.OPENED_BURST
    post._wrapped(wraps[1], "wss://relay.example")  # another key's mail does not suffer
    assert len(opened) == market_post.OPENED_BURST + 1
    clock[0] += 1.0
    for _ in range(1000):
        post._wrapped(wraps[0], "wss://relay.example")
    assert len(opened) == market_post.OPENED_BURST + 1 + market_post.OPENED


async def test_what_was_sent_through_tunnels_is_not_kept() -> None:
    """A busy seller tells a thousand bills a minute."""
    clock = [0.0]
    post = MarketPost(
        cast("Any", None), lambda: Moment(clock[0], time.time(), Entropy(os.urandom(32)))
    )
    who = Correspondent(bytes(31) + b"\x01", "lane", lambda heard: None, lambda tell: None)
    post.add(who)
    own, far = ip_address("fd00::1"), ip_address("fd00::2")
    sent: list[str] = []
    channel = SimpleNamespace(send=lambda address, text, token: sent.append(token))
    who.channels["nvpn0s", own] = cast("Any", channel)
    for _ in range(300):
        clock[0] += 1.0
        post.tell(who, Tell(who.key, "{}", "lease", far, False, ()))
    assert len(sent) == 300
    assert len(post._under_way) <= market_post.UNDER_WAY_S + 1
    # What fails in time goes by relays all the same.
    assert sent[-8] in post._under_way


_LOOKED_AT = {
    *("market_list", "market_why", "market_selling", "market_sessions", "market_earnings"),
    *("exit_purchase", "market_cases", "wallet_balance", "wallet_history", "wallet_mints"),
}


async def test_who_may_only_look_moves_no_money_and_sees_no_secret(options: Options) -> None:
    """The group of lookers: whatever shows a token, words or keys, or changes anything, is root's."""
    lookers = {name for name, (_, is_admin) in MARKET_COMMANDS.items() if not is_admin}
    assert lookers == _LOOKED_AT
    market = service(options)
    words = cast("Any", await market.call("wallet_backup", {}))["words"]
    keys = [ROOT.reveal(), ROOT.market_key(), ROOT.market_wireguard_key(), ROOT.payment_key()]
    keys.append(ROOT.arbiter_key())
    secrets = [str(words), *(key.hex() for key in keys), *(b64encode(key).decode() for key in keys)]
    for name in sorted(lookers - {"market_list", "market_why"}):  # those ask relays
        schema, _ = MARKET_COMMANDS[name]
        answer = await market.call(name, msgspec.to_builtins(schema()))
        shown = msgspec.json.encode(answer).decode()
        assert not [secret for secret in secrets if secret in shown], name
    await market.stop()


def test_everything_of_the_market_is_for_its_owner_only(options: Options) -> None:
    filled(options, Record("sale", "port", 20000), Record("wallet", "x", 1))
    Store.open(f"{options.state_dir}/market.db", ["sale"], ["lightning"]).close()
    lock = StateLock(f"{options.state_dir}/market.lock")
    lock.acquire()
    lock.release()
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(options.state_dir).iterdir()
    }
    assert {"market.db", "market.db.backup", "market.lock"} <= found.keys()
    assert set(found.values()) == {0o600}
    assert stat.S_IMODE(Path(options.state_dir).stat().st_mode) == 0o700


class Noted:
    """A shop that notes what is to be sold."""

    def __init__(self) -> None:
        self.sale: Sale | None = None

    async def sell(self, sale: Sale) -> None:
        self.sale = sale

    def document(self) -> dict[str, object]:
        return {}


async def test_who_may_buy_is_said_with_the_offer() -> None:
    shop, friend = Noted(), RootSecret(bytes(31) + b"\x09")
    said = ExitSell(
        price="20sat/GiB",
        mint=["https://mint.example"],
        i_understand=True,
        only=[friend.npub],
        never=[ROOT.npub],
        contact="abuse@example.org",
    )
    await SHOP_COMMANDS["market_sell"](
        cast("Any", shop), cast("Any", None), msgspec.to_builtins(said)
    )
    assert shop.sale is not None
    settings = settings_of(shop.sale, shop.sale.terms, "home", "02" + "ab" * 32, (["cd" * 32], []))
    assert settings.allow == {friend.public_key}
    assert settings.deny == {ROOT.public_key, "cd" * 32}
    assert shop.sale.contact == "abuse@example.org"
    assert Sale.from_json(shop.sale.to_json()) == shop.sale


@pytest.mark.parametrize("more", [[], ["channel"], ["channel", "channel"]])
async def test_channels_are_sold_only_if_they_are_named(more: list[Any]) -> None:
    shop = Noted()
    said = ExitSell(price="20sat/GiB", mint=["https://mint.example"], i_understand=True, pay=more)
    await SHOP_COMMANDS["market_sell"](
        cast("Any", shop), cast("Any", None), msgspec.to_builtins(said)
    )
    assert shop.sale is not None
    plain = (PayMode.LOCKED, PayMode.PLAIN)
    assert shop.sale.terms.pay == ((*plain, PayMode.CHANNEL) if more else plain)
    assert Sale.from_json(shop.sale.to_json()) == shop.sale


def test_a_lease_that_was_sold_names_its_buyer() -> None:
    def lease(name: str, buyer: str) -> Any:
        return SimpleNamespace(
            id=name, buyer=buyer, request=SimpleNamespace(key=name, who="", who_sig="")
        )

    one, two = ROOT.public_key, public_key(bytes(31) + b"\x05")
    seller = SimpleNamespace(pubkey=public_key(bytes(31) + b"\x06"))
    shop = cast(
        "Any",
        SimpleNamespace(leases=(lease("abc" * 10, one), lease("abd" * 10, two)), seller=seller),
    )
    assert buyer_named(shop, "abcabc") == npub(one)
    assert buyer_named(shop, "abdabdabd") == npub(two)
    for other in ("abc", "ffffffff", npub(two), ""):
        assert buyer_named(shop, other) == other
