"""How texts are made from what others publish."""
