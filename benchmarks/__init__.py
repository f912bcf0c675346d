"""Side-by-side measurements, each a command with a table as its output."""
