"""One module per public file format, each folding it into the canonical SAE."""
