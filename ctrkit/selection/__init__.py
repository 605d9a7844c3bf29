"""Feature ranking: which columns of a log say something about the label, which say it twice, and which are broken."""
