"""What touches the host: logs, the service manager, the control socket, metrics and HTTP.

Nothing here knows QEMU; modules outside this package bring the two together.
"""
