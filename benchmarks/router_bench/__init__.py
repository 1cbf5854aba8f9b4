"""What the router itself costs: real clients and a real router process, stages that answer at once."""
