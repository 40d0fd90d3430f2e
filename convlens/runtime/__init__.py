"""Where forwards run: torch now, behind the small interface that a faster runtime can take over."""
