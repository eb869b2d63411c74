"""How two nodes reach each other through relays that must not learn who talks to whom.

Decides: which mailbox a message goes to, how it is sealed, which received ones are accepted, which
relays are fit, when to reconnect. Knows nothing of networks' members, paths or WireGuard: what a
message's body means is the node's business. Open ``messages.py`` first, then ``courier.py``.

- ``messages``   the envelope: type, network, sequence, body, with its bounds
- ``mailboxes``  the blinded keys that messages are addressed to
- ``ratchet``    secrets that move one way, one step a day
- ``network_key``  what members have and others have not; the ring of those a node holds
- ``pair_secret``  the secret of a pair, agreed on inside the tunnel
- ``rekey``      a new network key for every remaining member
- ``keeper``     all these keys of a node: what is to be stored, and deleted
- ``sealing``    which key a seal has
- ``courier``    sealing and opening, deduplication, replay and clock rules
- ``directory``  which mailboxes a node reads, which one a message goes to
- ``postings``   what lies on a board; ``allowance``: how much effort it may cost
- ``board``      the network's: presence and news
- ``noticeboard``  what anybody may read: the offers of volunteers
- ``lanes``      behind a proxy: each mailbox and publication on connections of its own
- ``relays``     the pool of relay connections: publish to all, one acceptance suffices
- ``relay_events``  what goes into the pool and what comes out of it
- ``relay_slot``    one relay through its whole life: connecting, tested, in use, lost, tried again
- ``fitness``       does a relay deliver a wrap to somebody who listens
- ``subscription``  one standing subscription, whose mailboxes change without losing an event
- ``outbox``        messages on their way: which relays still owe an answer
- ``dispatch``      messages through one relay: which kind it takes, what waits, what is under way
"""
