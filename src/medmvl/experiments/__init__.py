"""Whole experiments made of the other rooms: the quickstart and the comparison runner."""
