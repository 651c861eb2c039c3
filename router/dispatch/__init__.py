"""The dispatch of a router: each admitted request moves from worker to worker until it ends."""
