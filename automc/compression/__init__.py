"""Compression methods, one per file, and `apply`, which composes them."""
