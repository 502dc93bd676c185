"""The runs on this disk: listed, compared, exported. Their folders are read as data only."""
