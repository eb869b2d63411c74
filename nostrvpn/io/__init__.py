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
- ``netlink``              links, addresses, routes: observe and apply
- ``netlink_monitor``      notice of changes to them (on the event loop)
- ``cleanup``              remove whatever carries our mark
- ``privilege``            what the kernel lets us do

Packets and relays (on the event loop):

- ``tap``             probes on WireGuard's own UDP port
- ``relays``          WebSocket connections to Nostr relays
- ``resolver``        names of STUN servers to addresses
- ``echo``            ICMPv6 echo through the tunnel, for ``ping``
- ``embedded_relay``  a relay of our own, for ``nostrvpn relay``, the lab and the tests

The host:

- ``service_manager``  sd_notify

Files:

- ``store``          the state database
- ``config_file``    the configuration file
- ``identity_file``  the root secret at rest
- ``durable_file``   writing a file so that it survives a crash
- ``lock``           one daemon per state directory
- ``logs``           where log lines go
"""
