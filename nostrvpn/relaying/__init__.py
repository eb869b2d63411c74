"""Lending ports to pairs of peers: the relay's side, as one pure machine.

Decides who gets a port, which two addresses are bound to it, and when it is taken back. What it
forwards is the business of nftables or of ``nostrvpn/io/``. Knows nothing of rosters or of Nostr.
Open ``server.py`` first.

- ``server``    RelayServer: requests, counters and time in; ports, answers and forwarding out
- ``events``    the closed unions of events and effects
- ``pairs``     one lent port and its two ends; all of them, with the caps on their number
- ``requests``  what may be asked, and where the answer goes
- ``limits``    how often
- ``metering``  how much a month
- ``nonces``    challenges that need no memory
- ``settings``  the caps
- ``snapshot``  what status shows
"""
