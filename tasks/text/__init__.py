"""What models read: documents from files, sequences of tokens, prompts in their frames, the embedded prose."""
