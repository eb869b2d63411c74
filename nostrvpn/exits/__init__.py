"""Exits as values and machines: what is offered, which one is used, and what may leave meanwhile. Pure.

Decides: the state of the kill switch, which exit is taken and when it is left for another one, what a
provider's policy lets its guests reach. Knows nothing of members, packet filters or sockets; imports no
sibling package. Open ``kill_switch.py`` first, then ``choice.py``.

- ``settings``     what the user of an exit decided
- ``kill_switch``  the states, and which one holds
- ``choice``       which exit is used, and when it is left for another one
- ``offer``        what a node that is an exit says of itself
- ``provider_health``  whether the WireGuard provider that its guests leave by answers
- ``guest_names``  which names and addresses an exit's guests are answered; ``blocklist``: and which not
- ``policy``       what guests may reach: named policies, own words, and the rules they make
- ``limits``       how much guests get, and the account of a month
"""
