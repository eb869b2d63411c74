"""Asking the router for a port: PCP, NAT-PMP and UPnP-IGD, as one pure machine.

Decides which protocol to ask, when to renew and what to give back. Knows nothing of peers. Open
``mapper.py`` first; ``io/port_mapping.py`` carries the effects out.

- ``mapper``         PortMapper: events in, effects out; which gateway, what is told of it
- ``gateway``        one gateway: probing, choosing, renewing, checking, giving back
- ``datagrams``      PCP and NAT-PMP with it: what to send, what an answer means
- ``upnp_requests``  UPnP with it, and the ways around what routers lack
- ``answers``        what an answer means, whichever protocol it came by
- ``lease``          a mapping, and the report of it
- ``epoch``          did the router lose its mappings
- ``pcp``, ``natpmp``, ``upnp``  the messages
- ``events``         the closed unions of events and effects
"""
