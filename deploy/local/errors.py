"""Errors of starting and stopping a cluster on this machine; each message is one for the person who asked for it."""


class ClusterStartError(Exception):
    """The cluster did not start; the message has what the failing process wrote last."""


class ClusterRunningError(Exception):
    """A cluster runs already from the same run directory."""


class NoClusterError(Exception):
    """No cluster runs from the run directory."""


class RunDirectoryError(Exception):
    """The run directory cannot be written, or what it says of a running cluster makes no sense."""
