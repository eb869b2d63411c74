"""Selling and buying exits by the megabyte, without accounts: the whole market without any I/O.

Decides: what an offer says, how a lease goes from quote to receipt on both sides, what is owed, whom to
trust how far, and that every millisatoshi is accounted for. Imports no socket, clock or database; money
is integer msat. Open ``terms.py`` first.

- ``terms``  prices, and how they are paid; ``sale``: what the owner of an exit decided

Leases, both sides:

- ``effects``   what the machines are told and ask for; ``messages``: what they say to each other
- ``sealing``   messages under seals and wraps
- ``attest``    usage and receipts signed by the seller; ``work``: proof of work on a request;
  ``introduction``: who a buyer is
- ``pace``      how much of what is costly is done for whoever asks
- ``escrow``    money that two of three have to sign for; ``arbiter``: the third, who decides
- ``billing``   counters through restarts, what is owed, a lease's state; ``ledger``: double entry

The seller:

- ``seller``    the machine; ``stall``: what its parts share; ``lease``: one lease as a record
- ``quoting``   who gets which price; ``trials``: budgets of what is free
- ``payments``  what is refused, credited, repeated; ``payment_check``: money, as far as one can know
- ``till``      what was shown before, and redeeming many at once; ``money_in``: one payment as a record
- ``invoices``  Lightning invoices that are not paid yet, or not known to be
- ``holds``    payments that wait in the network until the buyer releases them
- ``channel_till``  channels: which updates are taken, when one is closed; ``sold_channel``: one of them
- ``escrow_sold``  payments that wait for the buyer's word, or an arbiter's, and disputes
- ``errands``   the wallet is asked until it answers; ``serving``: counted, suspended, resumed
- ``ending``    refund and receipt; ``statements``: sessions and earnings as rows
- ``opening``   quiet hours and the month's budget: when nobody is served
- ``service``   what can be sold; ``exit_service`` and ``exit_access``: an exit as that

The buyer:

- ``buyer``     the machine; ``wish``: what the user wants; ``choosing``: whom to ask
- ``deal``      the quote
- ``buying``    one purchase, from request to receipt; ``saying``: its messages, made from the record
- ``paying``    what is set aside, shown slice by slice, and comes home; ``ceilings``: how much, at most
- ``invoice_paying``  the same by Lightning; what waits there until it is used
- ``channel_paying``  the same by channels; ``channel_effects``: what the wallet is asked about them
- ``escrow_bought``  payments that are released once they are used; ``homing``: what comes home, and when
- ``bill_check``  the own count, and what it thinks of the seller's; ``receipts``: the last bill
- ``tries``     what tries through the tunnel found; ``told``: what the seller said of its own count
- ``patience``    how long it waits for what
- ``bought_lease``  one lease as a record, and its books; ``buyer_records``: what is written, and when
- ``bought_link``   the tunnel as a value for the host; ``buyer_state``: words for ``exit status``

Offers and trust:

- ``offer``    kind 31900: what is sold, for how much, where to ask; ``tags``: reading tags with bounds
- ``foreign``  others' formats (37196, 30402), for an overview; ours as a classified listing
- ``book``     the offers that are known, bounded; ``listing``: filtered, sorted, and why not
- ``trust``    the score of a seller, of five parts that say why
- ``ratings``  what buyers say (7900, 1984); ``follows``: whose word counts; ``ranks``: NIP-85
"""
