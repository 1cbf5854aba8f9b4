"""The load generator behind `triptych bench serve`: workload, arrivals, backends, figures.

Names and definitions of the figures follow `vllm bench serve`, so that two systems' tables can lie side by side.
"""
