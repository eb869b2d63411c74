"""The whole node as one pure machine: it joins the concepts and computes the desired state.

Decides: what a relay message, a datagram, a command or a change of the host means for membership,
paths and tunnel together, and what the kernel should look like. Does no I/O: it takes events and
returns effects. Open ``events.py`` first (what goes in and out), then ``node.py``.

- ``events``    the closed unions of events and effects
- ``node``      the machine: one event in, effects out; ``restoring``: what it takes up at start
- ``inbox``     what a received message means; ``hearing``: what a peer says of itself in it
- ``outbox``    what one step has to say, sent at its end
- ``tunnel_post``  messages through the tunnels, where these are up
- ``board``     what is said to the whole network: presence and news
- ``roster_sync``  how two members come to the same operations and key; ``lacking``: asking unasked
- ``membership_effects``  what the membership machine asks for, carried out; who is followed
- ``post``      sending and receiving through relays, under which mailboxes
- ``moves``     when to act on a change of network
- ``path_effects``  what the path engine asks for, carried out
- ``relaying``  relays among the members: what is offered, by us and to us; ``volunteers``: strangers'
- ``tunnel``    what WireGuard is told of each peer, and when
- ``waking``    which peers a node connects to without being asked
- ``stun_lookup``  when to look STUN servers' names up
- ``peers``     what is known of each peer, and its tunnel's progress
- ``names``     the node's zone, and what ``resolve`` says
- ``services``  what the services beside the node say of themselves
- ``commands``  the control commands, each an event with an answer
- ``asked``     what commands speak of: the roster, members by name
- ``roster_commands``  those about the network; ``spreading``: answers that wait for a relay;
                ``chronicle``: the network's log in words
- ``policy``    this node's own rules, and all rules made into a filter; ``policy_commands``: theirs
- ``subnets``   networks behind members: through which router, and this node as one;
                ``subnet_commands``: their commands
- ``exits``     this node as one that uses an exit; ``exit_commands``, ``exit_status``: theirs
- ``booths``    commands of this host that run through an exit, each in a network namespace of its own
- ``exit_offer``  this node as an exit for others; ``exit_offer_commands``: its commands
- ``desired``   node -> WireGuard device, host state, packet filter; ``wanted``: all of it together
- ``status``    node -> the document behind ``nostrvpn status --json``; ``netcheck`` likewise
- ``why``       why a path is as it is: from ``situation`` (the facts) by ``reasons`` (rules as data)
                and ``tried`` (what each attempt came to)
- ``problems``  the catalogue of what can be wrong, in words, with the next step
"""
