"""Lending ports to pairs of peers: the relay's side, as one pure machine.

Decides who gets a port, which two addresses are bound to it, and when it is taken back. What it
forwards is the business of nftables or of ``nostrvpn/io/``. Knows nothing of rosters or of Nostr.
Open ``server.py`` first.
"""
