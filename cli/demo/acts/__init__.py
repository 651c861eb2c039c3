"""The acts of the demo: each plays against the cluster, and a pure function judges whether it showed its point."""
