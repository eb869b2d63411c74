"""How two nodes reach each other: the path engine.

Decides: which addresses to offer a peer, which of the peer's addresses to try and when, which path a
tunnel uses, and whether a path still lives. It gives datagrams to send, descriptions for signaling to
carry and endpoints for WireGuard, as effects. It knows nothing of Nostr, of the mesh or of WireGuard,
and imports only ``errors``, ``machine``, ``endpoint`` and ``stun``. Open ``link.py``
first (one peer's machine, its states as data), then ``agent.py`` (all of them, and the seam outwards).

- ``agent``        Paths: events in, effects out; tells datagrams apart, limits, one Link per peer
- ``events``       the closed unions of events and effects
- ``link``         one peer: its state, its rounds, its selected pair
- ``states``       the states of a link, as data
- ``checks``       the check list: pairs, tries, pacing, transactions (RFC 8445 section 6.1)
- ``announcer``    our session towards one peer: what to describe, and when to say it again
- ``remote``       the peer's side of it, and the memory against replays
- ``selection``    the pair in use: endpoint, nomination, heartbeat, proof
- ``heartbeat``    is the selected path alive (RFC 7675), at the price of few wake-ups
- ``proof``        did WireGuard's own packets cross, and is the tunnel in use
- ``reflexive``    STUN servers: our address from outside, and the NAT's kind of mapping
- ``candidates``   addresses to offer and to try, and those nobody may make us probe
- ``description``  what peers tell each other, as JSON
- ``budgets``      answers per source, probes per target
- ``snapshot``     what status and ``why`` show
- ``record``       timings of the stages, and what to persist
- ``settings``     the knobs
- ``patience``     how long a link waits

How two nodes meet, with one message each way::

    offerer                                      answerer
       |-- description (an offer) --------------->|
       |                          openers (low TTL)|   its own NATs' mappings now exist
       |<---------------- description (the answer)-|   it holds its checks of NATed pairs back
       | openers, checks ------------------------->|   the offerer's mappings exist before anything
       |<------------------- answers, its checks --|   of the answerer's can reach its NAT
       | path proven: UseEndpoint    path proven: UseEndpoint

So neither side ever probes a NAT that has no mapping for it, which matters with NATs that accept
input: there the probe itself makes conntrack move the port that the other side will use. If both
offer at once, both answer, and both check when the other's answer comes: the same two trips.
"""
