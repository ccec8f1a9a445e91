"""Checks of the reader's own code in the chapters' exercises.

One file per chapter holds its checks; a file is loaded when one of them is asked for.
"""

from kdcore.exercises.checking import Exercise, Result, check, exercise_names

__all__ = ["Exercise", "Result", "check", "exercise_names"]
