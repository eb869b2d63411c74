"""The configuration file: read into a Config, or written once with the user's first choices."""

from __future__ import annotations

import stat
from pathlib import Path

from nostrvpn.config.amend import amend_config
from nostrvpn.config.model import Config, Relays
from nostrvpn.config.parse import ConfigError, parse_config
from nostrvpn.config.profiles import laid_over
from nostrvpn.config.render import render_config
from nostrvpn.io.durable_file import refusal, write_durably

__all__ = ["check_choices", "load_config", "save_choices"]


def load_config(path: str, overlay: str | None = None) -> Config:
    """Return the configuration; the defaults if there is no file, ConfigError for a bad one.

    ``overlay``: the path of settings that are laid over it (a network's own).
    """
    text, over = _read(path), _read(overlay) if overlay is not None else None
    if over is not None:
        return laid_over(text or "", path, over, str(overlay))
    return Config() if text is None else parse_config(text, path)


def save_choices(
    path: str, name: str | None, relays: tuple[str, ...], *, default_name: str
) -> bool:
    """Put a name and relays into the configuration file; return whether the file is new.

    A file that exists is only added to; ConfigError if it already says otherwise. A new one (0644)
    holds every default as a comment, and ``default_name`` where no name was chosen.
    """
    target, text = Path(path), _read(path)
    if text is not None:
        amended = amend_config(text, path, name, relays)
        if amended != text:
            mode = stat.S_IMODE(target.stat().st_mode)
            write_durably(target, amended.encode(), mode=mode, replace=True)
        return False
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise refusal("create the directory", target.parent, error) from error
    chosen = Config(name=name or default_name, relays=Relays(urls=relays) if relays else Relays())
    write_durably(target, render_config(chosen).encode(), mode=0o644, replace=False)
    return True


def check_choices(path: str, name: str | None, relays: tuple[str, ...]) -> None:
    """Raise what ``save_choices`` would raise about the file's content, and change nothing."""
    text = _read(path)
    if text is not None:
        amend_config(text, path, name, relays)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not UTF-8 text", "the file must be YAML text") from error
    except OSError as error:
        raise refusal("read the configuration", path, error) from error
