"""What every stage tells about itself: metrics, traces, logs (docs/observability.md).

Import from the modules: nothing is imported here.
"""
