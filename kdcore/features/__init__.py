"""Learning from features and relations."""
