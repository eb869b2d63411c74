"""The search for a path through NATs that give another port to each destination (hard NATs).

Decides: which packets to send so that two such NATs, or one and an easy one, let each other in; and
which port of ours WireGuard's packets are to use then. What is tried, how well it works and what is
not worth trying is in docs/hard-nats.md. Open ``search.py`` first (the machine of one search), then
``link_search.py`` (when a link may search, and what the link gets of it).

- ``search``       one search: both sides' parts, from the first sample to the hit
- ``link_search``  one link's searches: the budget, the plan to tell, the hit
- ``task``         what a search starts from, and what comes out of it
- ``roles``        which part a side takes, and how often a node searches
- ``plan``         what two peers tell each other, as JSON
- ``ports``        how a NAT chooses ports, from samples
- ``samples``      a burst of STUN queries, and what lies between them
- ``shots``        the packets: paced, counted, and known again by their answers
- ``sweep``        new flows until our NAT's counter stands at a port foretold
"""
