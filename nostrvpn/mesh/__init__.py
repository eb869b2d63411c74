"""Who belongs to the network, and under which address.

Decides: which signed operations make a valid roster, who may join by which invite, what a link means,
and which overlay addresses a member has. Knows nothing of sockets, paths or WireGuard, and how its
messages travel is not its business. Open ``roster.py`` first, then ``membership.py``.

- ``addressing``  network id and member -> overlay addresses
- ``roster``      the log of signed operations and its fold
- ``invites``     the ``nostrvpn://`` link and the inviter's own record of it
- ``answers``     how often applicants are answered
- ``effects``     what the machine asks the node to do
- ``membership``  the machine: creating, inviting, joining, removing, catching up
"""
