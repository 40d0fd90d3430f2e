"""A chapter a file: which figures it has, by which commands, and what they show."""
