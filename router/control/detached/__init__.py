"""The controller as an actor of its own, which lives on when routers end, and what a router needs to follow it."""
