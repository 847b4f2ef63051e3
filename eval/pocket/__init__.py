"""How the pocket models are made: tokenizer, training, and the card that says how good they are."""
