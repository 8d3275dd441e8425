"""Tests on proportions and means, intervals, false discovery rate, permutation."""
