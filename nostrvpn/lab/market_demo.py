"""The market's demo: an exit is sold and bought by the megabyte, and both books agree in the end."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.core import Internet
from nostrvpn.lab.demo import INTERRUPTED, ONE_WAY_DELAY, report_document, tell_on
from nostrvpn.lab.leftovers import Footprint, leftovers
from nostrvpn.lab.market import Market
from nostrvpn.lab.market_books import Books, disagreements
from nostrvpn.lab.meeting import Narrator
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process

__all__ = ["run_market_demo"]

PRICE = "1000sat/GiB"
"""A sat buys a megabyte: dearer than exits are, so that a short download has something to pay."""

FUNDS = 500
SMALL_BUDGET, BUDGET = "40sat/day", "400sat/day"
DOWNLOAD, LONG_DOWNLOAD, SHORT_DOWNLOAD = 6_000_000, 60_000_000, 3_000_000
"""Bytes: within the small budget; far beyond it; of the second purchase."""

WORTH_GIVING_BACK_MSAT = 5000
MOST_DOWNLOADS = 6
"""What is left of a payment is given back if it is more than the mint's fee."""

MINT_FEE_PPK = 100
"""Of each token that is swapped, in thousandths of a sat: what Nutshell's mints ask."""

_SLOW = 60.0
_DOWNLOAD_S = 90.0
"""Without a stall the long one takes 4 s on a quiet machine, 20 beside seven busy processes."""

_MAP = """\
  laptop --- home (NAT) ---+            +--- vps: sells its exit
                           |            |
                           core, 20 ms one way
                           |            |
       server: STUN, relay, a mint      site: tells who visits it
"""

Json = dict[str, Any]


def run_market_demo(console: Console, as_json: bool = False) -> int:
    """Run the market's story once and tell it.

    Returns 0; 1 if the books disagree or anything was left behind; 130 if it was interrupted.
    """
    if not as_json:
        console.print("A laptop buys its way out through a stranger's VPS:\n", markup=False)
        console.print(_MAP, markup=False, highlight=False)
    narrator = Narrator(tell_on(console, silent=as_json))
    document: Json = {}
    footprint: Footprint | None = None
    interrupted = False
    try:
        with Market(fee_ppk=MINT_FEE_PPK, internet=Internet(delay=ONE_WAY_DELAY)) as lab:
            footprint = lab.footprint()
            narrator.say(f"the network stands: {len(lab.namespaces)} namespaces, relay, mint, site")
            document = _Story(lab, narrator).tell()
        narrator.say("the network is taken down")
    except KeyboardInterrupt:
        interrupted = True
        narrator.say("interrupted; the network is taken down")
    left = leftovers(footprint) if footprint else []
    clean = "nothing left behind: no namespace, process, interface, rule, route or table"
    narrator.say(clean if not left else "LEFT BEHIND: " + ", ".join(left))
    if as_json:
        console.print_json(data=document | report_document(narrator, left))
    elif document:
        _show(console, document)
    if interrupted:
        return INTERRUPTED
    return 1 if left or not document or document["disagreements"] else 0


class _Story:
    """The steps, in their order."""

    def __init__(self, lab: Market, narrator: Narrator) -> None:
        self.lab, self._say = lab, narrator.say
        self.buyer: LabNode = lab.laptop
        self.seller: LabNode = lab.sellers[0]

    def tell(self) -> Json:
        self._start()
        self._offer()
        first_byte_s = self._buy()
        self._use()
        self._run_out()
        locked = self._close()
        plain = self._buy_plain()
        self._rate(locked)
        return self._compare() | {"first_byte_s": first_byte_s, "leases": [locked, plain]}

    def _start(self) -> None:
        for node in (self.seller, self.buyer):
            node.init()
            node.start()
        for node in (self.seller, self.buyer):
            node.wait_for_relay()
            self._say(f"{node.name}: daemon up, relay connected")
        for node in (self.seller, self.buyer):
            node.cli("wallet", "mints", "add", self.lab.mint.url)
        self.buyer.cli("wallet", "fund", str(FUNDS), timeout=_SLOW)
        self._say(f"laptop: wallet fund {FUNDS}: {self._free(self.buyer)} sat at the mint")

    def _offer(self) -> None:
        words = ("--price", PRICE, "--country", "DE", "--mint", self.lab.mint.url)
        self.seller.cli("exit", "offer", "--public", *words, "--i-understand", timeout=_SLOW)
        self._say(f"vps: exit offer --public --price {PRICE} --country DE")
        row = wait_until(self._listed, "the offer in the laptop's list", timeout=_SLOW, poll=1.0)
        self._say(f"laptop: market list: {row['ref']}, {row['country']}, trust {row['trust']:.2f}")

    def _listed(self) -> Json | None:
        listed = self.buyer.query("market", "list", "--refresh")["offers"]
        return next((one for one in listed if one["usable"]), None)

    def _buy(self, *words: str, budget: str = SMALL_BUDGET) -> float:
        """Buy an exit, and return after how many seconds the first byte came through it."""
        began = time.monotonic()
        self._order("--budget", budget, *words)
        lab = self.lab
        seen = lab.host_laptop.run(
            "curl", "-sS", "-m", "20", f"{lab.site_url}/", timeout=30
        ).strip()
        took = time.monotonic() - began
        if seen != str(lab.hosts[0].address):
            raise SystemRefused(f"the site sees {seen}, not the VPS")
        self._say(f"laptop: exit buy --budget {budget}: the site sees {seen}, after {took:.1f} s")
        return took

    def _order(self, *words: str) -> None:
        answer = self.buyer.query(
            *("exit", "buy", "auto", "--max-price", PRICE, "--wait", "60", *words), timeout=120
        )
        if answer["state"] != "connected":
            raise SystemRefused(f"no exit was bought: {answer['text']}", self.seller.report())

    def _use(self) -> None:
        self._finish(self._download(DOWNLOAD), DOWNLOAD)
        lease = wait_until(self._counted, "the download in the bill", timeout=_SLOW)
        paid, due = lease["paid_msat"] / 1000, lease["due_msat"] / 1000
        self._say(
            f"laptop: {DOWNLOAD / 1e6:.0f} MB for {due:.3f} sat; {paid:g} sat paid, topped up"
        )

    def _counted(self) -> Json | None:
        lease: Json = self._purchase()["lease"]
        return lease if lease["bytes"] > DOWNLOAD else None

    def _run_out(self) -> None:
        """Use up the budget, so that the seller pauses, and raise it, so that he goes on."""
        download = self._download(LONG_DOWNLOAD)
        wait_until(
            lambda: self._purchase()["state"] == "paused",
            "the seller to pause",
            timeout=_SLOW,
            evidence=lambda: f"{self._purchase()}\n{self._sold()}",
        )
        self._say(f"laptop: the budget is used up, and the vps pauses: {self._purchase()['text']}")
        self._order("--budget", BUDGET)
        self._say(f"laptop: exit buy --budget {BUDGET}: the same lease goes on")
        self._finish(download, LONG_DOWNLOAD)
        self._say(f"laptop: the download of {LONG_DOWNLOAD / 1e6:.0f} MB went on, and is complete")

    def _close(self) -> Json:
        """End the lease; return its receipt."""
        known = {row["lease_id"] for row in self._bought() if row["state"] == "closed"}
        self.buyer.cli("exit", "off")
        row = wait_until(
            lambda: next(
                (
                    row
                    for row in self._bought()
                    if row["state"] == "closed" and row["lease_id"] not in known
                ),
                None,
            ),
            "the receipt",
            timeout=_SLOW,
            evidence=lambda: str(self._bought()),
        )
        self._say(
            f"laptop: exit off: receipt of {row['due_msat'] / 1000:g} sat for "
            f"{row['bytes'] / 1e6:.1f} MB, {row['refund_sat']} sat come back"
        )
        return row

    def _buy_plain(self) -> Json:
        """Buy once more, with money that is swapped at once: what is not used comes back."""
        self._buy("--pay", "plain", budget=BUDGET)
        for number in range(1, MOST_DOWNLOADS + 1):
            self._finish(self._download(SHORT_DOWNLOAD), SHORT_DOWNLOAD)
            lease = self._lease_counted(number * SHORT_DOWNLOAD)
            if lease["paid_msat"] - lease["due_msat"] >= WORTH_GIVING_BACK_MSAT:
                break
        before = self._free(self.buyer)
        row = self._close()
        if row["refund_sat"]:
            wait_until(lambda: self._free(self.buyer) > before, "the refund", timeout=_SLOW)
            self._say(f"laptop: the refund is in the wallet: {self._free(self.buyer)} sat")
        return row

    def _lease_counted(self, size: int) -> Json:
        """Return the lease once its own count has come to so many bytes."""

        def lease() -> Json | None:
            found: Json = self._purchase()["lease"]
            return found if found["bytes"] >= size else None

        return wait_until(lease, "all to be counted", timeout=_SLOW)

    def _rate(self, row: Json) -> None:
        said = self.buyer.query("market", "rate", row["lease_id"], "80")
        self._say(
            f"laptop: market rate {row['lease_id'][:8]}… 80: {said['accepted']} relay took it"
        )

    def _compare(self) -> Json:
        books = Books(self.buyer, (self.seller,), 1000 * FUNDS)
        wait_until(
            lambda: books.read().is_settled, "settled books", timeout=_SLOW, evidence=books.text
        )
        wrong = disagreements(books)
        self._say("the books agree to the msat" if not wrong else "THE BOOKS DISAGREE")
        for node in (self.buyer, self.seller):
            self._say(f"{node.name}: stopped (exit code {node.stop()})")
        return books.document() | {"disagreements": wrong}

    # -- looks --------------------------------------------------------------------------------

    def _download(self, size: int) -> Process:
        log = self.lab.directory / f"curl-{size}.log"
        words = ("curl", "-sS", "-m", "180", "-o", "/dev/null", "-w", "%{size_download} bytes\n")
        argv = (*words, f"{self.lab.site_url}/bytes/{size}")
        process = Process(self.lab.host_laptop.namespace, argv, log=log)
        self.lab.stack.callback(process.kill)
        return process

    def _finish(self, download: Process, size: int) -> None:
        wait_until(
            lambda: not download.alive,
            "a download",
            timeout=_DOWNLOAD_S,
            evidence=lambda: f"{download.tail()}\n{self._purchase()}\n{self._sold()}",
        )
        if f"{size} bytes" not in download.output():
            raise SystemRefused(f"{size} bytes did not arrive: {download.tail()}")

    def _purchase(self) -> Json:
        found: Json = self.buyer.ask("exit_purchase")
        return found

    def _sold(self) -> list[Json]:
        found: list[Json] = self.seller.ask("market_sessions")["sold"]
        return found

    def _bought(self) -> list[Json]:
        found: list[Json] = self.buyer.ask("market_sessions")["bought"]
        return found

    def _free(self, node: LabNode) -> int:
        return int(node.ask("wallet_balance")["free"])


def _show(console: Console, document: Json) -> None:
    """Print the receipts, and both books side by side."""
    receipts = Table("receipt", "paid", "bytes", "due", "credited", "given back", "why it ended")
    for row in document["leases"]:
        figures = (f"{row['bytes']:,}", _sat(row["due_msat"]), _sat(row["credited_msat"]))
        back = f"{row['refund_sat']} sat"
        receipts.add_row(row["lease_id"][:12], row["mode"], *figures, back, row["label"])
    console.print(receipts)
    books = Table("account", "laptop (buyer)", "vps (seller)")
    sides = [document["accounts"][side] for side in ("bought", "sold")]
    for name in sorted({*sides[0], *sides[1]}):
        shown = name if len(name) < 40 else f"{name[:22]}…"
        books.add_row(shown, *(_sat(side[name]) if name in side else "" for side in sides))
    console.print(books)
    for line in document["disagreements"]:
        console.print(line, style="red", markup=False)


def _sat(msat: int) -> str:
    return f"{msat / 1000:,.3f} sat"
