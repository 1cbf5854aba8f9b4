"""The three modes side by side on one machine: what disaggregation costs, and whether auto finds the better one."""
