"""Methods to compare with, each measured by the same protocol."""
