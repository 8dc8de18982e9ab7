"""The output folder: written in one step or not at all, and compared with what it should hold."""
