"""Rows become Samples. This room knows files and records, and no model."""
