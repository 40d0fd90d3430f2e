"""Jobs run to their end: steps, checkpoints, resuming, pictures, the page, and the manifest last; one or a batch."""
