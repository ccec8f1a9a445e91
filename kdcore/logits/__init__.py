"""Learning from outputs."""
