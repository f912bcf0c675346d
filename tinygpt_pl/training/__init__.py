"""The Trainer of the recipe and its callbacks.

It imports everything but `exchange` and `commands`.
"""
