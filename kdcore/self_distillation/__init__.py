"""Self-supervision and self-distillation."""
