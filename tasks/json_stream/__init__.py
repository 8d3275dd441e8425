"""JSON files of any size, read event by event: compressed, cut off, damaged, or with NaN in them."""
