"""What was decided and what it turned out to be worth: decisions written behind, labels acknowledged after commit."""
