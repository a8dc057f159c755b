"""Tests of the addresses that users may let the server connect to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from signoff.core.allow_list import MODEL_ADDRESSES, AllowList, check_model_url, checked_host, is_public
from signoff.errors import AddressRefused

NOTHING_ALLOWED = AllowList([])

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:800::200e"]
PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "0.0.0.0", "0.1.2.3"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.170", "192.0.2.1", "198.18.0.1", "192.88.99.1"),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "ff0e::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:7f00:1"),
    *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001::1"),
    *("2001:db8::1", "3fff::1", "5f00::1", "100::1"),
    *("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),  # metadata services
]


@pytest.mark.parametrize("text", PUBLIC)
def test_a_global_address_is_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", PRIVATE)
def test_a_private_reserved_or_embedding_address_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://[{text}]/" if ":" in text else f"https://{text}:8443/x?y" for text in PRIVATE),
        *("http://localhost", "http://a.localhost:1/", "http://LOCALHOST./", "http://127.0.0.1./"),
        *("http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://0/"),
        *("ftp://example.com", "file:///etc/passwd", "gopher://example.com/", "//example.com", "example.com", ""),
        *("http://", "http:///x", "http://user@example.com/", "http://u:p@example.com/", "http://@example.com/"),
        *("http://exa mple.com/", "http://example.com/\r\nx: y", "http://example.com\\@127.0.0.1/", "http://[::1/"),
        *("http://example.com:99999/", "http://example.com:x/", "http://１２７.0.0.1/", "http://ex\u00e4mple.com/"),
        "http://example.com/" + "x" * 2048,
    ],
)
def test_an_unusable_or_private_url_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        checked_host(url, NOTHING_ALLOWED)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com/hooks?token=1", "example.com"),
        ("http://EXAMPLE.com.:8080", "example.com"),
        ("https://8.8.8.8/", "8.8.8.8"),
        ("https://[2606:4700::1111]:444/", "2606:4700::1111"),
        ("https://xn--exmple-cua.com", "xn--exmple-cua.com"),
    ],
)
def test_the_host_of_an_acceptable_url_is_returned(url: str, host: str) -> None:
    assert checked_host(url, NOTHING_ALLOWED) == host


def test_the_operator_can_allow_hosts_and_networks() -> None:
    allow_list = AllowList(["127.0.0.0/8", "fd00::/8", "10.1.2.3", "Hooks.internal"])
    for url in ("http://127.0.0.1:1", "http://localhost", "http://[fd00::1]", "http://10.1.2.3", "http://127.1"):
        checked_host(url, allow_list)
    assert allow_list.permits("hooks.INTERNAL", ip_address("10.9.9.9"))
    for url in ("http://10.1.2.4", "http://[::1]", "http://[::ffff:127.0.0.1]", "http://169.254.169.254"):
        with pytest.raises(AddressRefused):
            checked_host(url, allow_list)
    assert not allow_list.permits("other.internal", ip_address("10.9.9.9"))


METADATA = [
    *("169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "224.0.0.1"),
    *("fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "fd00:ec2::254%3", "fd20:ce::254"),
    *("::ffff:169.254.169.254", "::ffff:169.254.169.254%lo", "::ffff:100.100.100.200", "::169.254.169.254"),
    *("::ffff:0:169.254.169.254", "64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254", "2002:a9fe:a9fe::1"),
    "2001:0:a9fe:a9fe::1",
]


@pytest.mark.parametrize("text", METADATA)
def test_a_model_cannot_be_at_a_metadata_address(text: str) -> None:
    assert not MODEL_ADDRESSES.permits("model.example", ip_address(text))
    with pytest.raises(AddressRefused, match="a model needs another one"):
        check_model_url(f"http://[{text}]:80/v1" if ":" in text else f"http://{text}/v1")


@pytest.mark.parametrize(
    "host",
    [
        *("2852039166", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376", "169.254.43518", "169.16689662"),
        *("169.254.169.254.", "metadata.google.internal", "METADATA.google.internal.", "[fe80::1%25eth0]"),
    ],
)
def test_other_spellings_of_a_metadata_address_are_refused(host: str) -> None:
    with pytest.raises(AddressRefused):
        check_model_url(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize(
    "text", ["10.0.0.7", "127.0.0.1", "192.168.1.9", "8.8.8.8", "::1", "fd12::7", "::ffff:10.0.0.7"]
)
def test_a_model_may_be_on_a_private_network(text: str) -> None:
    assert MODEL_ADDRESSES.permits("model.example", ip_address(text))
    check_model_url(f"https://[{text}]/" if ":" in text else f"https://{text}/")
    check_model_url("http://localhost:11434/v1")
