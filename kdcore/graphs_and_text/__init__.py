"""Graphs and language."""
