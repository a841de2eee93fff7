"""Recover lost chunks, publish what waits, and remove what is past its retention."""
