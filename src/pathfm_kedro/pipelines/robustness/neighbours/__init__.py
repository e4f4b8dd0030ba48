"""How index and margins are wired, which share a search, and examples of where they fail."""
