"""Compute the revln family: a CNN for pictures, a GRU for texts, and a decoder that writes captions."""
