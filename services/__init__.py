"""What the router, the workers and the simulator share: one noun a package, arrows pointing down to `services.slo`."""
