"""Whether an event is what a filter asked for (NIP-01): relays are not believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nostrvpn.nostr.event import Event

__all__ = ["Filter", "matches"]

Filter = Mapping[str, object]


def matches(filters: Sequence[Filter], event: Event) -> bool:
    """Return whether any of the filters asks for this event; ``limit`` says nothing of one event."""
    return any(_fits(one, event) for one in filters)


def _fits(one: Filter, event: Event) -> bool:
    own = {"ids": event.id, "authors": event.pubkey, "kinds": event.kind}
    for key, wanted in one.items():
        if key in own:
            fits = isinstance(wanted, Sequence) and own[key] in wanted
        elif key.startswith("#"):
            fits = isinstance(wanted, Sequence) and not set(wanted).isdisjoint(
                event.tag_values(key[1:])
            )
        elif key == "since":
            fits = isinstance(wanted, int) and event.created_at >= wanted
        elif key == "until":
            fits = isinstance(wanted, int) and event.created_at <= wanted
        else:
            continue
        if not fits:
            return False
    return True
