"""Disk, devices and terminal.

It imports nothing else of the package, and has no public face: import its files.
"""
