"""The explanation methods, one a file; the registry finds them here."""
