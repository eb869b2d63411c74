"""`proxy:` in the configuration."""

from __future__ import annotations

import pytest

from nostrvpn.config.addresses import check_proxy_url
from nostrvpn.config.model import Config
from nostrvpn.config.parse import ConfigError, parse_config
from nostrvpn.config.render import render_config


@pytest.mark.parametrize("url", ["socks5h://127.0.0.1:9050", "SOCKS5://proxy.example:1080/"])
def test_a_proxy_is_read_and_rendered(url):
    config = parse_config(f"proxy: {url}\n")
    assert config.proxy == url
    assert parse_config(render_config(config)) == config
    assert check_proxy_url(url)[1] in (9050, 1080)
    assert Config().proxy == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "127.0.0.1:9050",
        "socks5h://127.0.0.1",
        "socks5h://me:word@127.0.0.1:9050",
        "socks5h://127.0.0.1:0",
        "socks4://127.0.0.1:9050",
    ],
)
def test_what_is_no_proxy_is_one_clear_error(url):
    with pytest.raises(ConfigError, match=r"line 1: proxy: "):
        parse_config(f"proxy: {url}\n")
