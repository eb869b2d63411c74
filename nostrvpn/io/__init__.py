"""Adapters to the outside: each moves bytes to and from one thing, and decides nothing.

What is refused outside comes in as ``SystemRefused`` (the system) or ``UserError`` (a file the user
can mend); third-party exceptions end here. May import the pure packages below it, never ``daemon``,
``control`` or ``cli``. Open ``wireguard.py`` first.

The network stack (blocking; called from one worker thread, acts in that thread's network namespace):

- ``wireguard``            the ``Backend`` protocol and the choice of one
- ``wireguard_kernel``     WireGuard in the kernel, by pyroute2
- ``wireguard_userspace``  WireGuard in a process (wireguard-go), by UAPI
- ``wireguard_claim``      what both ask before they touch an interface
- ``wireguard_redirects``  the host setting that the kernel's WireGuard changes, put back
- ``tun_owner``            the processes behind a TUN interface
- ``pyroute``              pyroute2, without what is not used of it
- ``rtnetlink``            an open socket to the kernel's links and routes, and its refusals
- ``netlink``              links, addresses, routes: observe and apply
- ``routes``               our routes into the tunnel, with their metrics
- ``outer_limits``         fragments for narrow paths: a routing table for WireGuard's packets only
- ``default_routes``       a routing table of ours with default routes and ``unreachable``
- ``exit_routing``         rules and a table that lead into the tunnel to an exit
- ``shield``               what may leave beside an exit: its table, and ``src_valid_mark``
- ``boot_block``           what lockdown holds back, as a script that nft loads when the host starts
- ``netlink_monitor``      notice of changes to them (on the event loop)
- ``table_notices``        notice of what others remove from our nftables tables
- ``source_address``       which of our addresses the kernel would send from
- ``network_place``        which network the host is in, by its default gateway
- ``booth_way``            what leads single commands into the tunnel; ``booth``: making their namespace
- ``networks_beside``      where the host's other networks are, which an exit leaves alone
- ``upstream``             the way to a WireGuard provider that guests leave by
- ``sold``                 strangers who pay are let through: a table, changed lease by lease
- ``link_probe``           does a link lead to the internet (on the event loop)
- ``link_speed``           how fast the uplinks are
- ``exit_rivals``          who else leads packets through an exit
- ``nftables``             nft: one atomic transaction a call; our table of guards and pins
- ``own_tables``           every nftables table that carries our mark, removed
- ``cleanup``              remove whatever carries our mark
- ``privilege``            what the kernel lets us do, and giving up the rest

Packets and relays (on the event loop):

- ``tap``             probes on WireGuard's own UDP port, and on others while a hard NAT is searched
- ``relays``          WebSocket connections to Nostr relays
- ``market_relays``  the same for the market, apart from the mesh's; ``market_link``: one of them
- ``connection_failures``  why a WebSocket could not be had, in words
- ``http_way``        how HTTP and WebSockets get out: mark, names, proxy; what leads inside
- ``proxy``           the same through SOCKS5
- ``resolver``        names of servers, relays and mints to addresses; outside an exit too
- ``echo``            ICMPv6 echo through the tunnel, for ``ping``
- ``embedded_relay``  a Nostr relay of our own, for ``nostrvpn relay``, the lab and the tests

Remote endpoints that are not UDP (on the event loop):

- ``channels``     WebSockets to relays, and a TURN allocation's remote endpoints, each behind a shim
- ``shims``        the loopback sockets that WireGuard takes for a remote endpoint
- ``tcp_carrier``  short queues, and a dead TCP connection noticed soon
- ``turn``         TURN allocations; ``turn_wire``: one connection to a TURN server
- ``doorbell``     the endpoint of peers that sleep: what WireGuard sends there wakes them

Relaying for others (``relay_host`` first; a thread of its own talks to the kernel):

- ``relay_host``       the relay's machine (``relaying``), its ports and the kernel's table together
- ``relay_ports``      the lent UDP ports, and forwarding in user space
- ``relay_table``      forwarding in the kernel, by nftables
- ``relay_routing``    the host's forwarding settings, turned on and put back
- ``forward_policy``   does another firewall drop what this host forwards
- ``subnet_gateway``   forwarding into networks behind this host, and its settings put back
- ``exit_meter``       what an exit's guests get at most, and its counters
- ``relay_websocket``  for members whose network blocks UDP

Asking the router (``portmap`` decides):

- ``port_mapping``  PCP and NAT-PMP; timers
- ``upnp``          SSDP, and HTTP with the default gateway only

Members:

- ``peer_channel``  messages through a member's tunnel: a TCP port on the overlay

Money:

- ``mint``  HTTP with Cashu mints, by ``http_way``

Names (``host.resolver`` decides):

- ``dns_server``    our name server: for this host, and for an exit's guests
- ``dns_forwarder``  asking other name servers, and passing questions on to them
- ``host_servers``  those that this host has outside
- ``guest_names``   what an exit's guests are answered; ``blocklists``: and what not
- ``resolved``      systemd-resolved, by D-Bus; ``resolvconf``; ``resolv_conf``: the file itself
- ``name_cleanup``  what these were told, taken back
- ``nip05``         what a domain says of a name

Lightning:

- ``nwc``    a connection to somebody's wallet (NIP-47)
- ``lnurl``  an invoice of a lightning address

The host:

- ``clock_watch``      the machine slept, or its clock was set
- ``service_manager``  sd_notify; ``service_files``: the units, installed and removed;
  ``runtime_directory``: whose the control sockets' place is
- ``ssh_session``      where whoever types a command sits

Files:

- ``store``          the state database; ``store_backup``: its backup
- ``config_file``    the configuration file
- ``provider_file``  the wg-quick file of a WireGuard provider
- ``country_database``  in which country an address is
- ``identity_file``  the root secret at rest
- ``durable_file``   writing a file so that it survives a crash
- ``profiles``       the networks of one node: which there are, which one is spoken to
- ``lock``           one daemon per network of a state directory
- ``logs``           where log lines go
"""
