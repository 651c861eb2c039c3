"""Deployment of a cluster: on this machine (`deploy.local`) or in containers."""
