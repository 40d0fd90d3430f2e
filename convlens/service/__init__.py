"""From requests to replies, knowing no server: what a request may ask, one engine, what a reply looks like."""
