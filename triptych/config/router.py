"""The router: its ports, how it places requests and what it does when actors fail."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section


class RouterSection(Section):
    host: str = Field("127.0.0.1", description="Address that clients connect to.")
    port: int = Field(50_051, ge=0, le=65_535, description="0: any free port (printed).")
    http_port: int = Field(
        8_000, ge=-1, le=65_535, description="Port of the OpenAI HTTP API; 0: any free port (printed), -1: none."
    )
    max_attempts: int = Field(4, ge=1, description="How often the walk of a request is begun when actors die under it.")
    placement: str = Field(
        "cache_aware",
        description="Placement policy by name: cache_aware, least_loaded, power_of_two (many routers) or round_robin.",
    )
    ageing_s: float = Field(
        2.0,
        gt=0,
        description="While the stages are full: text goes before pictures, pictures before videos, and after every "
        "ageing_s of waiting a request counts as one kind cheaper.",
    )
    kv_overcommit: float = Field(
        2.0,
        gt=0,
        description="Tokens that requests may grow to, as a multiple of those the KV caches hold: most answers end "
        "before max_tokens.",
    )
    max_chunks_per_s: float = Field(
        2_500.0,
        gt=0,
        description="Chunks that a router process sends in a second, about: when more answers run each gets its tokens "
        "in fewer, larger chunks.",
    )
    circuit_failures: int = Field(
        3, ge=1, description="An actor that fails so many requests in a row gets no new ones for a while."
    )
    circuit_pause_s: float = Field(
        1.0, gt=0, description="For how long, before one request tries it again; doubles with every trial that fails."
    )
    hedge_encode: bool = Field(
        False,
        description="Begin a request a second time on other encoders when it has no token after the p99 of encoding; "
        "the slower one is cancelled.",
    )
    stall_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Mode auto: how much a running answer is slowed while the tower of its own actor works; "
        "1: it stands still.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes behind the same ports, each with a share of the connections. They divide "
        "limits.max_pending_requests, limits.max_pending_bytes and the room of the stages; max_chunks_per_s and the "
        "limits of a token hold in each by itself. More than 1 needs SO_REUSEPORT (Linux).",
    )
    media_workers: int = Field(2, ge=1, description="Threads that read media headers and tokenize.")
