"""Several router processes behind one port.

The first runs the controller and tells the others who can work; each answers requests with a dispatcher of its own.
The kernel spreads connections over them (SO_REUSEPORT), so a client is bound to one process for as long as its
connection lasts.
"""
