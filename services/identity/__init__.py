"""Who calls: principals, their roles and rights, and the credentials that prove them."""
