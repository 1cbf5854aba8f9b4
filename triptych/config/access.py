"""The sections of the configuration that say who may call, over what, and what may be fetched for them."""

from __future__ import annotations

from ipaddress import ip_network

from pydantic import Field, field_validator, model_validator

from triptych.config.section import Section


class FetchSection(Section):
    """Pictures and videos that a request of the HTTP API names by URL."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that may be asked, none unless named: 'host' (ports 80 and 443), 'host:port', "
        "'*.domain' for all below it, '*' for every public host.",
    )
    allowed_networks: tuple[str, ...] = Field(
        (),
        description="Address ranges (10.1.0.0/16) that may be connected to although they are not public; "
        "the host must be allowed too.",
    )
    max_redirects: int = Field(3, ge=0, le=20, description="Redirects followed; each is checked like the first URL.")
    timeout_s: float = Field(10.0, gt=0, description="For one URL, names and redirects included.")
    max_concurrent: int = Field(16, ge=1, description="URLs fetched at once by a router process; others wait.")

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)  # A ValueError that says what is wrong.
        return networks


class ClientTlsSection(Section):
    """TLS on the ports that clients connect to, gRPC and HTTP."""

    certificate: str = Field("", description="PEM file, the whole chain; empty: no TLS.")
    key: str = Field("", description="PEM file of the certificate's private key.")

    @model_validator(mode="after")
    def _is_complete(self) -> ClientTlsSection:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("needs certificate and key, or neither")
        return self


class StageTlsSection(Section):
    """Mutual TLS between router and stages: each shows the certificate and asks for one of the same authority."""

    certificate: str = Field("", description="PEM file on every node; empty: no TLS between router and stages.")
    key: str = Field("", description="PEM file of the certificate's private key.")
    authority: str = Field("", description="PEM file of the CA that signed the certificates of router and stages.")
    name: str = Field("triptych-stage", description="DNS name in every stage's certificate; addresses are not in it.")

    @model_validator(mode="after")
    def _is_complete(self) -> StageTlsSection:
        if len({bool(self.certificate), bool(self.key), bool(self.authority)}) > 1:
            raise ValueError("needs certificate, key and authority, or none of them")
        return self


class SecuritySection(Section):
    """Who may call, and over what. See docs/security.md."""

    tokens_file: str = Field(
        "", description="Lines that `triptych token new` prints; read again when it changes. Empty: anybody may call."
    )
    clients: ClientTlsSection = ClientTlsSection()
    stages: StageTlsSection = StageTlsSection()
