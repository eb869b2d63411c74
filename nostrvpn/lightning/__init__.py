"""Lightning through somebody's own wallet: Nostr Wallet Connect, invoices, addresses; without I/O.

Decides: what a request to a wallet says and what its answer means (NIP-47), what an invoice asks for
(BOLT 11), where a lightning address leads (LUD-06, LUD-16). Holds no money and no connection.
"""
