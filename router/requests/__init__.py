"""The requests of a router: what is known of each, and how to find them."""
