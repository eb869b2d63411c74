"""QR codes in the terminal."""

from __future__ import annotations

import sys

__all__ = ["show_qr"]


def show_qr(text: str) -> None:
    """Print text as a QR code of half-block characters, readable on dark and light terminals."""
    import segno

    segno.make(text, error="l", micro=False).terminal(out=sys.stdout, compact=True, border=2)
