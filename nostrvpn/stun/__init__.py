"""STUN (RFC 8489) as values: the one packet format that probes, relays and STUN servers share.

Decides nothing: bytes to values and back, on aioice's codec. Everything the codec raises for bytes
from outside becomes PeerMisbehaved here. Open ``binding.py`` first.

- ``binding``   Binding requests, connectivity checks (RFC 8445) and their answers
- ``relaying``  what a client and a relay of the mesh say to each other
- ``codec``     aioice's codec without the rest of aioice
"""
