"""In which country an address is, by a database of the user's in MaxMind's format (``.mmdb``)."""

from __future__ import annotations

import re
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import UserError

__all__ = ["CountryDatabase"]

_COUNTRY = re.compile(r"[A-Z]{2}\Z")
# Where databases have the code: GeoLite2 and DB-IP, IPinfo, others.
_PLACES = (("country", "iso_code"), ("country_code",), ("country",))


class CountryDatabase:
    """An open database. Imports maxminddb, which only whoever configures one needs."""

    def __init__(self, path: str) -> None:
        """UserError says why it cannot be used."""
        hint = "correct exit.country_database in the configuration, or leave it out"
        try:
            import maxminddb
        except ImportError as exc:
            raise UserError(
                f"{path} needs the library maxminddb", "install it: pip install maxminddb"
            ) from exc
        try:
            self._reader = maxminddb.open_database(path)
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as exc:
            raise UserError(f"{path} cannot be read as a country database: {exc}", hint) from exc
        self._damage = maxminddb.InvalidDatabaseError

    def country(self, ip: IPAddress) -> str | None:
        """Return the country's code (ISO 3166-1 alpha-2); None if the database does not say."""
        try:
            found: Any = self._reader.get(ip)
        except (ValueError, self._damage):
            return None  # an IPv4 database asked about IPv6, or a damaged record
        for place in _PLACES:
            value = found
            for step in place:
                value = value.get(step) if isinstance(value, dict) else None
            if isinstance(value, str) and _COUNTRY.match(value):
                return value
        return None

    def close(self) -> None:
        """Give the file back."""
        self._reader.close()
