"""A thousand mixed requests while actors are killed: every accepted one is answered right, or honestly refused."""
