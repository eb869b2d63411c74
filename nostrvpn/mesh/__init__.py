"""Who belongs to the network, and under which address.

Decides: which signed operations have an effect and what they come to, who may join by which link, what
members may do to each other, and which overlay addresses a member has. Knows nothing of sockets, paths
or WireGuard, and how its messages travel is not its business. Open ``roster.py`` first, then
``membership.py``.

- ``roster``      the log of signed operations as a value: merging, signing, catching up
- ``operations``  one operation: shape, bounds, signature; ``history``: the graph they make
- ``fold``        a set of operations -> what holds, by ``authority`` (may it?) and ``state`` (and then)
- ``members``     who and what a roster speaks of, as values; ``names``: what they may be called
- ``log_text``    operations packed for messages
- ``addressing``  network id and member -> overlay addresses
- ``membership``  the machine: inviting, joining, catching up; with ``ledger`` (the roster it holds),
                  ``joining`` and ``admission`` (the two sides), ``administration`` (what users decide)
                  and ``upkeep`` (what admins do by the clock)
- ``invites``     the link for one, and the inviter's own record of it; ``tokens``: the link for several;
                ``links``: how both are spelled
- ``answers``     how often applicants are answered
- ``effects``     what the machine asks the node to do
- ``permissions`` rules as values; ``policy``: what they come to at one node
- ``subnets``     networks behind members: which may be shared, what a user shares and accepts
- ``zone``        names in DNS; ``zone_answers``: what is answered to whom
"""
