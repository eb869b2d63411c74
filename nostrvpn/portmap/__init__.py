"""Asking the router for a port: PCP, NAT-PMP and UPnP-IGD, as one pure machine.

Decides which protocol to ask, when to renew and what to give back. Knows nothing of peers.
"""
