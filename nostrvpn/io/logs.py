"""Where the daemon's log goes: standard error, or a bounded file when it runs detached."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import RotatingFileHandler

from nostrvpn.io.durable_file import refusal

__all__ = ["start_logging"]

# 4 MiB and one old file: weeks at the default level, and never more than 8 MiB of the disk.
_MAX_LOG = 4 * 1024 * 1024
_OLD_LOGS = 1
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _BoundedLog(RotatingFileHandler):
    """A rotating log that also owns stdout and stderr, so that a crash's last words land in it."""

    def doRollover(self) -> None:
        super().doRollover()
        self.take_standard_output()

    def take_standard_output(self) -> None:
        """Point file descriptors 1 and 2 at the present log file."""
        if self.stream is not None:
            os.dup2(self.stream.fileno(), 1)
            os.dup2(self.stream.fileno(), 2)


def start_logging(level: str, log_file: str | None) -> None:
    """Send log records of at least ``level`` (``info``, …) to a bounded file, or to stderr."""
    handler: logging.Handler
    if log_file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            bounded = _BoundedLog(log_file, maxBytes=_MAX_LOG, backupCount=_OLD_LOGS)
        except OSError as error:
            raise refusal("write the log", log_file, error) from error
        bounded.take_standard_output()
        handler = bounded
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries are only heard when something is wrong: at debug level they drown what we say.
    root.setLevel("WARNING")
    logging.getLogger("nostrvpn").setLevel(level.upper())
