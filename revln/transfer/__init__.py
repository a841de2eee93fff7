"""Vectors by the million, between files and a collection: a slice at a time, in bounded memory."""
