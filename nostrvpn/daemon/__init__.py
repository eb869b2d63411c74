"""The daemon: the thin asyncio shell around the pure node.

Decides nothing about domain state; it feeds events in, carries effects out, keeps the kernel
reconciled and ends in order. Open ``loop.py`` first.

- ``main``       from options to a running daemon and its exit code
- ``loop``       inbox -> node.step -> effects -> deadline
- ``inbox``      the events that wait, and which of them may be lost
- ``services``   what runs beside the node: channels, TURN, port mapping, our own relay
- ``exit_service``  echoes to exits, and in which countries they are
- ``guest_meter``  what this host's guests used, every few seconds
- ``boot_guard``  what lockdown blocks while no daemon runs
- ``name_service``  our name server, and this host's resolver told of it
- ``exit_names``    whom it asks for other names while an exit is wanted
- ``relay_service``  this node as a relay: its machine, ports, WebSockets and what it remembers
- ``market_board``    offers: our own published, others' found and judged
- ``market_opinions``  whose word on sellers counts, and what they say
- ``market_commands``  the commands about both
- ``wallet``      ecash: every operation once by its name; ``wallet_answers``: what it answers
- ``wallet_spending``  inputs, outputs and another try; ``wallet_errands``: carrying out, finding out
- ``wallet_book``  what it has written down; ``wallet_mints``: whom it trusts, and their keys
- ``wallet_channels``  payment channels: funded, closed, settled
- ``wallet_recovery``  comparing with the mints, and money from words; ``wallet_commands``
- ``lightning_service``  money in and out by Lightning, a connected wallet, payouts;
  ``lightning_commands``; ``lightning_rail``: what leases ask of it
- ``market_service``   all of the market together, opened when it is needed; ``market_parts``: what its
  halves share
- ``market_machine``   runs a machine: kept before sent; ``market_cashier``: its requests to the wallet;
  ``market_post``: its messages, through tunnels and by relays; ``market_pace``: how often at most
- ``market_keysets``   what mints sign with, asked of all at once
- ``market_hours``     when it is sold, and how much each buyer may have at a time
- ``market_shop``      selling; ``market_wares``: what, ``market_premises``: where strangers come to;
  ``shop_commands``
- ``market_customer``  buying; ``market_wishes``: what ``exit buy`` says; ``market_links``: its
  tunnels; ``market_soundings``: what is measured of sellers
- ``arbiter_bench``    deciding about others' money in escrow; ``escrow_commands``: its commands
- ``market_told``      how a sale stands; what is added to ``exit status``, ``exit list``, ``status``
- ``sleepers``   the doorbell of peers whose paths sleep
- ``host_watch``  addresses and routes, at start and after each change
- ``reconcile``  the kernel's observe -> diff -> apply, in one worker thread
- ``settled``  what was found as desired, until when that is believed, and what failed
- ``own_link``  one WireGuard link with its device and addresses, for ``reconcile``
- ``booth_way``  the way of single commands through an exit, for ``reconcile``
- ``upstream_way``  the link to a WireGuard provider that an exit's guests leave by, for ``reconcile``
- ``sold_way``  the link of strangers who pay, for ``reconcile``
- ``bought_way``  the links that exits are behind which are paid for, for ``reconcile``
- ``exit_way``   what may leave beside an exit and the way to it, for ``reconcile``
- ``rounds``  which wishes the reconciler has carried out, for answers that wait for it
- ``supervise``  named tasks whose failure ends the daemon loudly
"""
