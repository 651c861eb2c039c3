"""The workers of a router: links to them, commands for them, and what is known of them."""
