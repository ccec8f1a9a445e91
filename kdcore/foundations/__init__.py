"""What the whole field builds on; every method may import from here."""
