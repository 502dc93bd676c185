"""List, compare and export the runs on this disk. Their folders are read as data only."""
