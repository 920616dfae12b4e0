"""What runs on a cluster and in its heads, and who is at work."""
