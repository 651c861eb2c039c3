"""The command `slos-serve`: every service on its own, a cluster on this machine, and a client for the terminal."""
