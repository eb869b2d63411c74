"""Lightning through somebody's own wallet: Nostr Wallet Connect, invoices, addresses; without I/O.

Decides: what a request to a wallet says and what its answer means, what an invoice asks for, where a
lightning address leads. Holds no money and no connection. Open ``nwc.py`` first.

- ``nwc``     requests to a wallet, its answers and notifications (NIP-47)
- ``bolt11``  invoices
- ``lnurl``   lightning addresses (LUD-06, LUD-16)
"""
