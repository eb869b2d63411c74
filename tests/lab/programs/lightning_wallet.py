"""A Lightning wallet behind Nostr Wallet Connect, on the relay that is named; two hosts may share it.

With ``plain`` it can hold no payment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from tests.invoices import make_invoice
from tests.lightning_wallet import LightningService


async def make(amount_msat: int) -> str:
    return make_invoice(amount_msat, os.urandom(32).hex(), int(time.time()), 600)


async def main(relay: str, *more: str) -> None:
    service = LightningService(relay, make, balance=1_000_000)
    if "plain" in more:
        service.methods = " ".join(m for m in service.methods.split() if "hold" not in m)
    await service.start()
    sys.stdout.write(f"link {service.link}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
