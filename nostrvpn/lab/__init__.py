"""The network-namespace lab: real NATs, a routed internet, a relay and STUN, on one machine.

It decides how a test network is built, watched and taken away again; the demo, the lab tests and
the benchmarks build on it. It may import ``nostrvpn.control`` (the client, to see how a daemon is
without starting a command) and everything below; nothing below may import it, and it never imports
``daemon`` or ``cli``: a node in the lab is the real program, run as a subprocess (``node.py``).

::

    laptop-a --- nat-a ---+              +--- nat-b --- laptop-b
    192.168.1.x           |              |              192.168.2.x
                        core: routed "internet" (delay, hops, loss)
                          |
                        server: STUN on two addresses, Nostr relay

Where to look::

    topology.py     Lab: hosts, routers, servers, nodes; open this first
    topologies.py   TwoNats, SameLan, Mesh: ready-made networks in a few lines each
    core.py         the routed core and its conditions (Internet)
    nat.py          NAT kinds as nftables rulesets
    delay.py        the TUN router process behind delay, hops and loss
    signals.py      a lab that is interrupted undoes itself first
    namespaces.py   one network namespace: run, popen, enter, ip, nft, sysctl
    links.py        veth pairs
    processes.py    a supervised child process with a log; patience.py: bounded waits
    stun.py         STUN server process; relay.py: Nostr relay process, with a recorder in front
    mint.py         a real Cashu mint (Nutshell); website.py: a site that sees who comes
    market.py       a seller, a buyer, a mint and a site
    market_books.py what buyer, sellers and wallets have, held against each other
    market_demo.py  an exit sold and bought, told step by step
    turn.py         a real TURN server (coturn); gateway.py: port mapping by a real miniupnpd
    capture.py      tcpdump on a link; transfer.py: a checked TCP transfer between namespaces
    node.py         the real daemon as a subprocess, and its command line
    service.py      the same with the user and capabilities of the service's unit
    gathering.py    many nodes become one mesh
    matrix.py       every kind of network against every other: which path is found
    leftovers.py    sweep what dead labs left, and prove that this one left nothing
    scenarios.py    what ``nostrvpn lab run|shell|demo`` offer; meeting.py: two nodes meet
    demo.py         the demo; shell.py: an interactive shell inside a scenario

A new network is a subclass of ``Lab`` (or ``Pair``, to run scenarios on it) with its own ``build``;
``scenarios.CarrierGrade`` is one in six lines.

Everything is created inside namespaces named ``nvl{pid}-{serial}-{name}``, so that two labs never
meet and a dead one can be swept. Nothing is changed in the host's own namespace.

Environment: ``NOSTRVPN_LAB_PATIENCE`` multiplies every timeout (slow, emulated machines);
``NOSTRVPN_LAB_VERBOSE=1`` echoes every command to standard error;
``NOSTRVPN_LAB_LOGS=DIR`` keeps a copy of each lab's logs, captures and node state in DIR.
"""
