"""A first router process without stages: prints the ids of the others when they listen, and waits to be killed."""

from __future__ import annotations

import asyncio

from router.api.client_ports import ClientPorts
from router.control.membership import Membership
from router.dispatch.dispatcher import Dispatcher
from router.processes.first_process import FirstProcess
from triptych.config import DeploymentConfig
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.rpc.channels import ChannelPool


class NoScaler:
    def topology(self) -> list[object]:
        return []


async def main() -> None:
    config = DeploymentConfig.from_sources(
        overrides={"router": {"processes": 3, "port": 0, "http_port": 0}}, environment={}
    )
    membership, channels = Membership(), ChannelPool(2**24)
    dispatcher = Dispatcher(config, "tiny", BUILT_IN_FOLDER, membership, channels)
    first = FirstProcess(config, membership)
    ports = ClientPorts(config, "tiny", dispatcher, membership, channels, NoScaler(), first.shared)
    await ports.start()
    await first.start(ports)
    print(*first.process_ids, flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
