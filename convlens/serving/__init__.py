"""From wire to wire, knowing no server: requests in, replies out, metrics, logs and the published schemas."""
