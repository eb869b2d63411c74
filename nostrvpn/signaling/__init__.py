"""How two nodes reach each other through relays that must not learn who talks to whom.

Decides: which mailbox a message goes to, how it is sealed, which received ones are accepted, which
relays are fit, when to reconnect. Knows nothing of networks' members, paths or WireGuard: what a
message's body means is the node's business. Open ``messages.py`` first, then ``courier.py``.

- ``messages``   the envelope: type, network, sequence, body, with its bounds
- ``mailboxes``  the blinded keys that messages are addressed to
- ``courier``    sealing and opening, deduplication, replay and clock rules
- ``relays``     the pool of relay connections: publish to all, one acceptance suffices
"""
