"""What every gRPC server and client of the project shares: errors as statuses, server, channels, deadlines.

Import from the modules: nothing is imported here.
"""
