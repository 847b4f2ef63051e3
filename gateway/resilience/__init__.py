"""What keeps one broken tier from breaking the rest. Plain state machines: the clock and chance are handed in."""
