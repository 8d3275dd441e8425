"""The page on systematic outlier dimensions, of one model or of a sweep."""
