"""YAML to a validated Config, with errors that name the line, the key and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import yaml

from nostrvpn.config.addresses import (
    check_host_port,
    check_proxy_url,
    check_relay_url,
    parse_turn_url,
)
from nostrvpn.config.model import Config
from nostrvpn.config.relay import BadRelay, check_relay
from nostrvpn.errors import UserError

__all__ = ["ConfigError", "parse_config"]

# A configuration is a page or two; this stops a wrong path (a log, an image) from being parsed.
MAX_TEXT = 256 * 1024

_T = TypeVar("_T")
_Path = tuple[str | int, ...]
_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_PATTERN_MEANING = {
    "name": "expected 1 to 63 of a-z, 0-9 and -",
    "follow": "expected an npub",
    "lists": "expected npubs",
    "interface": "expected 1 to 15 of a-z, A-Z, 0-9, '_', '.' and '-'",
}


# How msgspec names types, and how a person does.
_WORDS = {"str": "text", "int": "a whole number", "array": "a list", "object": "keys with values"}
_WORDS |= {"null": "nothing", "bool": "true or false", "float": "a number"}
# A type among literals.
_PLAIN_CHOICES = {bool: ["true", "false"]}


class ConfigError(UserError):
    """The configuration file holds a mistake; the text names file, line and key."""

    code = "bad_config"


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases: nothing here needs them, and nested ones can grow without end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not used here",
                problem_mark=self.get_mark(),
            )
        return super().compose_node(parent, index)


def parse_config(text: str, source: str = "configuration") -> Config:
    """Return the Config of YAML text, or raise ConfigError; ``source`` names it in errors."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{source}: it is too large to be a configuration", "check the path")
    value, lines = _load(text, source)
    if value is None:
        return Config()
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: expected 'key: value' lines", "see the example in the manual")
    _check_keys(value, Config, (), lines, source)
    try:
        config = msgspec.convert(value, Config)
    except msgspec.ValidationError as error:
        raise _explain(error, lines, source) from error
    return _check_addresses(config, lines, source)


def _load(text: str, source: str) -> tuple[Any, dict[_Path, int]]:
    """Return the plain value of a YAML document, and on which line each key path stands."""
    lines: dict[_Path, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, lines
            _collect_lines(node, (), lines, source)
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{source}{where}: {error.problem or error.context or 'not YAML'}",
            "check indentation (spaces, not tabs), colons and quotes on that line",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "not YAML"
        raise ConfigError(f"{source}: {reason}", "the file must be YAML text") from error


def _collect_lines(node: yaml.Node, path: _Path, lines: dict[_Path, int], source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*path, str(key_node.value))
            line = key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    f"{source} line {line}: {_dotted(key)} is given twice",
                    f"the first is on line {lines[key]}, keep one",
                )
            lines[key] = line
            _collect_lines(value_node, key, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _collect_lines(item, (*path, index), lines, source)


def _check_keys(
    value: dict[Any, Any], model: type, path: _Path, lines: dict[_Path, int], source: str
) -> None:
    """Refuse keys that do not exist, naming the nearest that does, on this level or another."""
    fields = get_type_hints(model)
    for key, inner in value.items():
        if key not in fields:
            where = _where((*path, str(key)), lines, source)
            raise ConfigError(f"{where}: there is no such key", _nearest(str(key), path, fields))
        section = _section(fields[key])
        if section is None:
            continue
        if key == "relay" and isinstance(inner, str | list):
            where = _where((*path, key), lines, source)
            raise ConfigError(
                f"{where}: expected keys with values", "Nostr relays are listed in relays.urls"
            )
        if isinstance(inner, dict):
            _check_keys(inner, section, (*path, key), lines, source)
        for index, item in enumerate(inner if isinstance(inner, list) else ()):
            if isinstance(item, dict):
                _check_keys(item, section, (*path, key, index), lines, source)


def _section(field: Any) -> type[msgspec.Struct] | None:
    """Return the model of a section or of a list's items, or None for a plain value."""
    for kind in (field, *get_args(field)):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind
    return None


def _nearest(key: str, path: _Path, fields: dict[str, Any]) -> str:
    elsewhere = {name.rpartition(".")[2]: name for name in _all_keys()}
    here = get_close_matches(key, fields, n=1, cutoff=0.6)
    if here and (path or key not in elsewhere):
        return f"did you mean {_dotted((*path, here[0]))}?"
    other = get_close_matches(key, elsewhere, n=1, cutoff=0.7)
    if other:
        return f"did you mean {elsewhere[other[0]]}?"
    return "keys here are: " + ", ".join(fields)


def _all_keys() -> list[str]:
    names = []
    for section, field in get_type_hints(Config).items():
        names.append(section)
        inside = _section(field)
        if inside is not None and inside is field:
            names += [f"{section}.{inner}" for inner in get_type_hints(inside)]
    return names


def _explain(error: msgspec.ValidationError, lines: dict[_Path, int], source: str) -> ConfigError:
    match = _AT.match(str(error))
    reason, text = (match["reason"], match["path"] or "") if match else (str(error), "")
    path: _Path = tuple(
        name or (int(index) if index.isdigit() else index) for name, index in _STEP.findall(text)
    )
    leaf = next((str(step) for step in reversed(path) if isinstance(step, str)), "")
    if "matching regex" in reason:
        reason = _PATTERN_MEANING.get(leaf, reason)
    if reason.startswith("Invalid enum value"):
        reason = f"expected {_choices(path)}, got {reason.removeprefix('Invalid enum value ')}"
    reason = re.sub(r"`([a-z]+)( \| null)?`", lambda word: _WORDS.get(word[1], word[1]), reason)
    reason = reason[:1].lower() + reason[1:].replace("`", "")
    return ConfigError(f"{_where(path, lines, source)}: {reason}", "correct the value")


def _choices(path: _Path) -> str:
    hint: Any = Config
    for step in path:
        if isinstance(step, str):
            hint = get_type_hints(_section(hint) or hint).get(step)
    choices: list[str] = []
    for choice in get_args(hint):
        choices += _PLAIN_CHOICES.get(choice) or [
            str(item) for item in get_args(choice) or [choice]
        ]
    return " or ".join(choices)


def _check_addresses(config: Config, lines: dict[_Path, int], source: str) -> Config:
    """Check what types cannot say, and give every address its one spelling."""

    def checked(check: Callable[[str], _T], text: str, path: _Path, hint: str) -> _T:
        try:
            return check(text)
        except ValueError as error:
            raise ConfigError(f"{_where(path, lines, source)}: {error}", hint) from error

    urls = [
        checked(check_relay_url, url, ("relays", "urls", index), "an example: wss://nos.lol")
        for index, url in enumerate(config.relays.urls)
    ]
    market = [
        checked(check_relay_url, url, ("market", "relays", index), "an example: wss://nos.lol")
        for index, url in enumerate(config.market.relays)
    ]
    if config.proxy:
        checked(check_proxy_url, config.proxy, ("proxy",), "Tor's: socks5h://127.0.0.1:9050")
    for index, server in enumerate(config.stun):
        checked(check_host_port, server, ("stun", index), "an example: stun.example.org:3478")
    for index, turn in enumerate(config.turn):
        hint = "an example: turn:turn.example.org:3478?transport=udp"
        checked(parse_turn_url, turn.url, ("turn", index, "url"), hint)
        if bool(turn.password) == bool(turn.password_file):
            where = _where(("turn", index), lines, source)
            text = f"{where}: it needs either password or password_file"
            raise ConfigError(text, "a file keeps the password out of the configuration")
    try:
        relay = check_relay(config.relay)
    except BadRelay as error:
        where = _where(("relay", *error.path), lines, source)
        raise ConfigError(f"{where}: {error}", error.hint) from error
    relays = msgspec.structs.replace(config.relays, urls=tuple(dict.fromkeys(urls)))
    offers = msgspec.structs.replace(config.market, relays=tuple(dict.fromkeys(market)))
    return msgspec.structs.replace(config, relays=relays, relay=relay, market=offers)


def _where(path: _Path, lines: dict[_Path, int], source: str) -> str:
    known = path
    while known and known not in lines:
        known = known[:-1]
    line = f" line {lines[known]}" if known else ""
    return f"{source}{line}: {_dotted(path)}" if path else f"{source}{line}"


def _dotted(path: _Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
