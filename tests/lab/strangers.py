"""A market with somebody who buys: what its tests do and look at, and how each of them ends."""

from __future__ import annotations

from typing import Any

from nostrvpn.lab.leftovers import HostSnapshot
from nostrvpn.lab.market import Market
from nostrvpn.lab.market_books import Books, disagreements
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process

__all__ = ["FUNDS", "LIMIT", "PRICE", "SAT_BYTES", "Strangers"]

FUNDS = 2000
# A sat buys a megabyte: a short download has something to pay.
PRICE = "1000sat/GiB"
SAT_BYTES = (1 << 30) // 1000
LIMIT = 30.0
_SLOW = 60.0

Json = dict[str, Any]


class Strangers(Market):
    """``open_up`` starts all, puts money into the laptop's wallet and sellers on the market."""

    def open_up(self) -> None:
        self.refs: dict[str, str] = {}
        for node in (*self.sellers, self.laptop):
            node.init()
            node.start()
        for node in (*self.sellers, self.laptop):
            node.wait_for_relay()
            node.cli("wallet", "mints", "add", self.mint.url)
        self.laptop.cli("wallet", "fund", str(FUNDS), timeout=_SLOW)
        for seller in self.sellers:
            self.offer(seller)

    def offer(self, seller: LabNode) -> None:
        """Put a seller on the market, and wait until the laptop sees it there."""
        words = ("--price", PRICE, "--mint", self.mint.url, "--country", "DE", "--i-understand")
        seller.cli("exit", "offer", "--public", *words, timeout=_SLOW)
        self.refs[seller.name] = ref = seller.ask("market_selling")["offer"]
        wait_until(lambda: ref in self.listed(), f"the offer of {seller.name}", timeout=LIMIT)

    def listed(self) -> set[str]:
        """Return which offers the laptop sees, and may take."""
        found = self.laptop.query("market", "list", "--refresh")["offers"]
        return {one["ref"] for one in found if one["usable"]}

    def buy(self, offer: str = "auto", *words: str) -> Json:
        """Have the laptop buy; return what it says of the purchase."""
        answer: Json = self.laptop.query(
            *("exit", "buy", offer, "--max-price", PRICE, "--wait", "60", *words), timeout=120
        )
        assert answer["state"] == "connected", answer
        return answer

    def purchase(self) -> Json:
        """Return how the laptop's purchase stands."""
        found: Json = self.laptop.ask("exit_purchase")
        return found

    def lease(self) -> Json:
        """Return the lease in use."""
        found: Json = self.purchase()["lease"]
        assert found is not None, self.purchase()
        return found

    def bought(self) -> list[Json]:
        """Return the laptop's leases, the newest first."""
        found: list[Json] = self.laptop.ask("market_sessions")["bought"]
        return found

    def seen(self) -> str:
        """Return which address the site sees of the laptop; empty if it is not reached."""
        words = ("curl", "-sS", "-m", "10", f"{self.site_url}/")
        return self.host_laptop.run(*words, check=False, timeout=15).strip()

    def download(self, size: int, *, seconds: int = 60, rate: str = "0") -> Process:
        """Begin a download; its log has the bytes that came when it ends."""
        log = self.directory / f"download-{len(list(self.directory.glob('download-*')))}.log"
        words = ("curl", "-sS", "-m", str(seconds), "--limit-rate", rate, "-o", "/dev/null")
        argv = (*words, "-w", "%{size_download} bytes\n", f"{self.site_url}/bytes/{size}")
        process = Process(self.host_laptop.namespace, argv, log=log)
        self.stack.callback(process.kill)
        return process

    def received(self, download: Process) -> int:
        """Wait for the end of a download, and return how many bytes came."""
        wait_until(lambda: not download.alive, "the end of a download", timeout=90)
        return int(download.output().rpartition(" bytes")[0].rpartition("\n")[2])

    def settle(self) -> Books:
        """End what was bought; wait until all is settled, and all books and the mint agree."""
        self.laptop.cli("exit", "off")
        books = Books(self.laptop, tuple(self.sellers), 1000 * FUNDS)
        # A refund that is being swapped is in no wallet for a moment.
        wait_until(
            lambda: books.read().is_settled and not disagreements(books),
            "settled books",
            timeout=2 * LIMIT,
            evidence=lambda: f"{disagreements(books)} {books.text()}",
            poll=0.2,
        )
        return books

    def snapshot(self) -> HostSnapshot:
        """Return the laptop's links, rules, routes and tables."""
        with self.host_laptop.namespace.enter():
            return HostSnapshot.take()
