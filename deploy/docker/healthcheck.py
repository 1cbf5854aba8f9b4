"""Exit status 0 when the server at host:port says SERVING over the gRPC health protocol.

Kubernetes needs no such script: its own gRPC probes ask the same question.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0


def main(endpoint: str) -> int:
    with grpc.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            print(error.details())
            return 1
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    print("serving" if is_serving else "not serving yet")
    return 0 if is_serving else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
