"""Generated protobuf and gRPC code (`make protos`); the sources are in protos/triptych/v1."""
