"""The mints that the user trusts with money: which they are, their keys, and how to speak with them.

A mint is trusted by its URL and by what its keysets' ids are the hashes of: keys never change under a
known id. Keysets come and go; the list is asked again every hour, and when the mint says that one is
no longer good.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from nostrvpn.cashu.answers import (
    KeysetInfo,
    MintInfo,
    keyset_id,
    parse_info,
    parse_keys,
    parse_keysets,
)
from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.cashu.proof import Keyset, MintKeys
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import UserError
from nostrvpn.io.mint import MintBusy, MintClient, MintUnreachable
from nostrvpn.io.store import Record, Store

__all__ = ["UNIT", "Mints", "UnknownMint"]

UNIT: Final = "sat"
REFRESH_S: Final = 3600.0
# What the wallet cannot do without: states, DLEQ; and, to pay a stranger, locks.
NEEDED_NUTS: Final = {7: "states", 9: "restore", 10: "conditions", 11: "locks", 12: "DLEQ"}
# Keysets of which the wallet takes and makes money; Nutshell rotates rarely. Those that a mint no longer
# lists are kept too, until there are too many to write down as one record (3 MB).
MAX_KEYSETS: Final = 200
MAX_KNOWN: Final = 500
# For all their keys together: each question by itself may take the client's whole patience.
KEYS_S: Final = 60.0


class UnknownMint(UserError):
    """A mint that the user did not say may be used."""

    code = "unknown_mint"


class Mints:
    """The trusted mints, in the space "mint" of ``store``; ``connect`` makes a client for a URL."""

    def __init__(self, store: Store, connect: Callable[[str], MintClient]) -> None:
        self._store = store
        self._connect = connect
        self._clients: dict[str, MintClient] = {}
        self._asked: dict[str, float] = {}
        self._known = {url: _from_json(url, value) for url, value in store.all("mint").items()}

    def urls(self) -> tuple[str, ...]:
        """Return the trusted mints, sorted."""
        return tuple(sorted(self._known))

    def client(self, url: str) -> MintClient:
        """Return what speaks with a trusted mint; UnknownMint for any other."""
        self.known(url)
        if url not in self._clients:
            self._clients[url] = self._connect(url)
        return self._clients[url]

    def known(self, url: str) -> MintKeys:
        """Return what is known of a trusted mint without asking it; UnknownMint."""
        try:
            return self._known[url]
        except KeyError:
            raise UnknownMint(
                f"the mint {url} is not one of yours",
                f"to trust it: nostrvpn wallet mints add {url}",
            ) from None

    def all_known(self) -> dict[str, MintKeys]:
        """Return every trusted mint's keys, by URL."""
        return dict(self._known)

    async def trust(self, text: str) -> tuple[str, MintInfo]:
        """Take a mint into the list; UserError, or what the client raises, if it is not good enough."""
        url = parse_mint_url(text)
        client = self._clients.get(url) or self._connect(url)
        try:
            info = parse_info(await client.get("/v1/info"))
            missing = sorted(set(NEEDED_NUTS) - info.nuts)
            if missing:
                words = ", ".join(f"{NEEDED_NUTS[nut]} (NUT-{nut:02})" for nut in missing)
                raise UserError(f"the mint {url} lacks {words}", "choose another mint")
            before = self._known.get(url) or MintKeys(url, {})
            keys = await _ask_keys(client, before)
            if not keys.active(UNIT):
                raise UserError(f"the mint {url} makes no money in {UNIT}", "choose another mint")
        except BaseException:
            if url not in self._clients:
                await client.close()
            raise
        self._clients[url] = client
        self._keep(url, keys)
        return url, info

    def distrust(self, url: str) -> None:
        """Take a mint off the list."""
        self.known(url)
        self._store.delete("mint", url)
        del self._known[url]

    async def keys(self, url: str, *, fresh: bool = False) -> MintKeys:
        """Return a mint's keysets, asked for within the last hour, or now if ``fresh``.

        Those of before do if the mint is silent and it need not be fresh.
        """
        known = self.known(url)
        if not fresh and time.monotonic() - self._asked.get(url, -REFRESH_S) < REFRESH_S:
            return known
        try:
            found = await _ask_keys(self.client(url), known)
        except (MintUnreachable, MintBusy):
            if fresh:
                raise
            return known
        self._keep(url, found)
        return found

    async def signing(self, url: str, until: float) -> Keyset:
        """Return the keyset for new money, good beyond Unix time ``until`` if there is such a one."""
        active = (await self.keys(url)).active(UNIT)
        if not active:
            raise WalletFailed(f"the mint {url} makes no money in {UNIT} now", may_retry=True)
        lasting = [k for k in active if k.final_expiry is None or k.final_expiry > until]
        return lasting[0] if lasting else max(active, key=lambda k: k.final_expiry or 0)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    def _keep(self, url: str, keys: MintKeys) -> None:
        if keys != self._known.get(url):
            self._store.put([Record("mint", url, _to_json(keys))])
        self._known[url] = keys
        self._asked[url] = time.monotonic()


async def _ask_keys(client: MintClient, known: MintKeys) -> MintKeys:
    """Return the keysets as the mint lists them now, asking for the keys of new ones only.

    PeerMisbehaved(``bad-keyset``) if an id is not the hash of its keys. What the mint no longer lists
    is kept as inactive: proofs of it may still be ours.
    """
    found = {id: replace(keyset, is_active=False) for id, keyset in known.keysets.items()}
    try:
        async with asyncio.timeout(KEYS_S):
            infos = parse_keysets(await client.get("/v1/keysets"))
            for info in infos[:MAX_KEYSETS]:
                before = known.keysets.get(info.id)
                if info.unit != UNIT:
                    continue
                if before is not None:
                    found[info.id] = _updated(before, info)
                elif len(found) < MAX_KNOWN:
                    found[info.id] = parse_keys(await client.get(f"/v1/keys/{info.id}"), info)
    except TimeoutError as error:
        raise MintUnreachable(f"{client.url} does not tell its keys in time") from error
    return MintKeys(client.url, found)


def _updated(keyset: Keyset, info: KeysetInfo) -> Keyset:
    """Return a known keyset with what may change: whether it signs; of version 0, fee and expiry too."""
    if keyset.id.startswith("01"):
        return replace(keyset, is_active=info.is_active)
    return replace(
        keyset,
        is_active=info.is_active,
        fee_ppk=info.fee_ppk,
        final_expiry=info.final_expiry,
    )


def _to_json(keys: MintKeys) -> dict[str, Any]:
    return {
        "keysets": [
            {
                "id": keyset.id,
                "unit": keyset.unit,
                "is_active": keyset.is_active,
                "fee_ppk": keyset.fee_ppk,
                "final_expiry": keyset.final_expiry,
                "keys": {str(amount): key for amount, key in keyset.keys.items()},
            }
            for keyset in keys.keysets.values()
        ]
    }


def _from_json(url: str, value: Any) -> MintKeys:
    found = {}
    for one in value["keysets"]:
        keys = {int(amount): key for amount, key in one["keys"].items()}
        keyset = Keyset(**{**one, "keys": keys})
        assert keyset_id(keyset, int(keyset.id[:2])) == keyset.id, "stored under another's name"
        found[keyset.id] = keyset
    return MintKeys(url, found)
