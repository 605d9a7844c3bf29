"""Bodies on the wire -> the graph's inputs, probabilities -> bodies: one file a format. No HTTP in here."""
