"""Why a trained model predicts what it predicts: over a whole split, and for one row."""
