"""Model cards: what a checkpoint folder is, from what is known of it; nothing in a card is invented."""

from medmvl.cards.card import CARD_FILE, card_text, write_card
from medmvl.cards.statements import Statements, read_statements

__all__ = ["CARD_FILE", "Statements", "card_text", "read_statements", "write_card"]
