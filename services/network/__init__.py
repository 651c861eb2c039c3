"""Network addresses, as every server of the cluster writes, checks and advertises them."""
