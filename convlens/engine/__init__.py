"""From requests to replies, knowing no server: admission, batches, deadlines, and the drawing of results."""
