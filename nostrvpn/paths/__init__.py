"""How two nodes reach each other: the path engine.

Decides: which addresses to offer a peer, which of the peer's addresses to try and when, which path a
tunnel uses, and whether a path still lives. It gives datagrams to send, descriptions for signaling to
carry and endpoints for WireGuard, as effects. It knows nothing of Nostr, of the mesh or of WireGuard,
and imports only ``errors``, ``machine``, ``endpoint`` and ``stun``. Open ``link.py``
first (one peer's machine, its states as data), then ``agent.py`` (all of them, and the seam outwards).

- ``agent``        Paths: events in, effects out; tells datagrams apart, limits, one Link per peer
- ``events``       the closed unions of events and effects
- ``agenda``       what is due on which link, and which link asked what
- ``link``         one peer, as events see it: descriptions, checks, moves, time
- ``link_path``    its parts, its state, and the path it uses: chosen, lost, replaced
- ``link_sleep``   a path that nobody uses is let go, until somebody wants it
- ``states``       the states of a link, as data
- ``rounds``       when a direct path is looked for again, and how both begin at once over a relay
- ``checks``       the check list: pairs, tries, pacing, transactions (RFC 8445 section 6.1)
- ``open_checks``  checks as messages, and which of them await answers
- ``pair``         one endpoint of the peer and how its checks go
- ``announcer``    our session towards one peer: what to describe, and when to say it again
- ``remote``       the peer's side of it, and the memory against replays
- ``selection``    the pair in use: endpoint, heartbeat, proof, and when it is left
- ``nomination``   which pair both sides use: said by one, followed by the other
- ``path_mtu``     how large a packet may be on one path (RFC 8899)
- ``guards``       late packets of the old path, when the endpoint of a live tunnel changes
- ``heartbeat``    is a path alive (RFC 7675), at the price of few wake-ups
- ``detours``      what a link has beside direct paths, and which of it takes over
- ``standby``      relayed pairs that are kept warm beside the selected one
- ``relays``       the relays of one link: allocating, tickets, binding, WebSockets
- ``relay_demand`` how many relays a link is to have, and when they are asked
- ``relay_end``    our end of one pair on one relay
- ``relay_requests``  what was asked of a relay, and whether an answer is one
- ``relay_offers`` what nodes tell each other about relays, as JSON
- ``openings``     how often members make us open WebSockets
- ``relay_book``   what this node knows of relays and of UDP, for all its links
- ``turn_routes``  the peer's addresses as seen from our TURN servers
- ``proof``        did WireGuard's own packets cross, and is the tunnel in use
- ``reflexive``    STUN servers: our address from outside, and the NAT's kind of mapping
- ``hard_nat/``    the search for a path through NATs with unpredictable ports
- ``candidates``   addresses to offer and to try, and those nobody may make us probe
- ``description``  what peers tell each other, as JSON
- ``fields``       values in a peer's JSON, within bounds
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

A relayed path is one more endpoint of the peer: a port of the relay's, or a loopback address that
stands for a WebSocket or for a TURN server's channel. It is checked, nominated and kept alive as any
other; it ranks below every direct one, is used until a direct one is proven, and then waits beside
it. While it is in use, a check through it calls a round of direct checks, in the place of the
description above, and its answer in the place of the other.

So neither side ever probes a NAT that has no mapping for it, which matters with NATs that accept
input: there the probe itself makes conntrack move the port that the other side will use. If both
offer at once, both answer, and both check when the other's answer comes: the same two trips.
"""
