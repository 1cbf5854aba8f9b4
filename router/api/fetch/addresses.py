"""Which addresses may be connected to: public ones, and ranges that the operator named."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

# Prefixes under which an IPv6 address stands for an IPv4 one (RFC 6052, RFC 8215), beside those that ipaddress knows.
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))


class AddressRules:
    """`allowed_networks` are exceptions to the rule that only public addresses are connected to."""

    def __init__(self, allowed_networks: Sequence[str] = ()) -> None:
        self._allowed = [ip_network(network) for network in allowed_networks]

    def is_allowed(self, text: str) -> bool:
        """Whether this address may be connected to; a text that is none may not."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        faces = _faces(address)
        if any(faces[0] in network for network in self._allowed):
            return True
        return all(_is_public(face) for face in faces)


def _faces(address: Address) -> list[Address]:
    """The address (an IPv4-mapped one as IPv4), and the IPv4 addresses that it is tunnelled to."""
    if isinstance(address, IPv4Address):
        return [address]
    faces: list[Address] = [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        faces.append(address.sixtofour)
    if address.teredo is not None:
        faces.extend(address.teredo)
    if any(address in network for network in _NAT64):
        faces.append(IPv4Address(int(address) & 0xFFFF_FFFF))
    return faces


def _is_public(address: Address) -> bool:
    """Not private, loopback, link-local, shared (100.64/10), documentation, multicast, reserved or unspecified."""
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_link_local
    is_local_site = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not is_special and not is_local_site
