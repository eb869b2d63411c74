"""The host around the tunnel as a value: link, addresses, routes, packet filter, and the least
change to them.

Decides: what differs between the found and the desired state, in which order to mend it, and the
marks by which our kernel objects are known. Knows nothing of netlink; imports no socket, no
subprocess and no sibling package. Open ``state.py`` first, then ``diff.py``.

- ``state``     ``HostState`` and our marks (link alias, route protocol number, fwmark)
- ``diff``      desired against observed -> operations, each printable as an ``ip`` line
- ``resolver``  how this host's resolver is told of our names: systemd-resolved, resolvconf, resolv.conf
- ``dns_message``  the question of a DNS message, and the addresses in an answer
- ``nft_text``  how the scripts of our tables are written, and the mark of a table
- ``firewall``  what we ask of nftables, and the script that makes it so
- ``inbound``   what may come out of the tunnel into this host, and the script of that
- ``exit_filter``  what guests of an exit may reach through this host: rules of ``inbound``'s table
- ``exit_meter``   how much guests of an exit get, and the script that measures it
- ``shield``    what may leave while an exit is used or nothing may, and the script of that
- ``answers``   what is answered past the exit that is used: chains of ``shield``'s table
- ``booth``     single commands that are led into the tunnel: addresses, rules, and the script of that
- ``exit_routing``  rules and a table of our own that lead into the tunnel
- ``routing_tables``  the numbers of our routing tables
- ``links``           the names of our links beside the mesh's own
- ``sold``            strangers who pay, on a link of their own: the values, and the script of that
- ``sold_leases``     what changes in it with each lease
- ``bought``          exits that are paid for, each behind a link: the values, and the script of that
- ``upstream``        a WireGuard provider that guests leave by: link, rules, and the script around it
- ``subnet_gateway``  this host forwards into networks behind it: SNAT, and nothing else, and its script
"""
