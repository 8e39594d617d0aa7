"""Importing this module registers every converter."""

from __future__ import annotations

from medmvl.data.prepare import ct_rate, slake

__all__ = ["ct_rate", "slake"]
