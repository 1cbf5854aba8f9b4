"""What the router serves over gRPC."""
