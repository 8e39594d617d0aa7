"""Fuzz harness: files of every format that medmvl reads, damaged at random and read through the public functions."""
