"""The web page of all results and the page of each optimizer, made from the committed JSON."""
