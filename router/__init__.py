"""The router: what runs the system. Serves clients, walks their requests through the stages, controls the actors."""
