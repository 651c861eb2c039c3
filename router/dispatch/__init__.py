"""The dispatcher of a router: it moves each admitted request from worker to worker until it ends."""
