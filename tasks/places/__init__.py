"""Where models, dictionaries, texts and results lie, and the one rule that no location carries credentials."""
