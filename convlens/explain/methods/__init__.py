"""The explanation methods, one per file; the registry finds them here."""
