"""Where models, dictionaries, texts and results lie, what is kept of them here, and the rule against credentials."""
