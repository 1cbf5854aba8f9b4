"""TLS: certificates from files to what gRPC servers and channels take."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from triptych.config.access import ClientTlsSection, StageTlsSection
from triptych.errors import ConfigurationError


@dataclass(frozen=True)
class StageTls:
    """Mutual TLS between router and stages: one certificate of this process, one authority that both sides ask for.

    Stages are known by `name`, not by address: actors come and go on ports and nodes that no certificate foresees.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    name: str

    @classmethod
    def from_config(cls, section: StageTlsSection) -> StageTls | None:
        """None where the section names no files; ConfigurationError, naming the key, for one that can't be read."""
        if not section.certificate:
            return None
        return cls(
            certificate=_read(section.certificate, "security.stages.certificate"),
            key=_read(section.key, "security.stages.key"),
            authority=_read(section.authority, "security.stages.authority"),
            name=section.name,
        )

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that takes calls only from holders of a certificate of the authority."""
        pair = (self.key, self.certificate)
        return grpc.ssl_server_credentials([pair], root_certificates=self.authority, require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For channels that show the certificate and trust only the authority."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)

    def channel_options(self) -> list[tuple[str, str]]:
        """What makes a channel expect `name` in the server's certificate."""
        return [("grpc.ssl_target_name_override", self.name)]


def stage_server_credentials(section: StageTlsSection) -> grpc.ServerCredentials | None:
    """What a stage's server listens with; None without TLS."""
    tls = StageTls.from_config(section)
    return None if tls is None else tls.server_credentials()


def client_server_credentials(section: ClientTlsSection) -> grpc.ServerCredentials | None:
    """What the router's gRPC port listens with; None without TLS."""
    if not section.certificate:
        return None
    certificate = _read(section.certificate, "security.clients.certificate")
    return grpc.ssl_server_credentials([(_read(section.key, "security.clients.key"), certificate)])


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{key}: can't read {path}: {error.strerror}", field=key) from None
