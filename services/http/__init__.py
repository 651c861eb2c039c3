"""What the HTTP servers of the cluster share."""
