"""The endpoints of a router: they validate what clients send and write what clients read."""
