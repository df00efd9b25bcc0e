"""Inverse problems as plain array functions. Knows nothing of enkg_ref."""
