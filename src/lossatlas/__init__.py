"""Maps of neural-network loss landscapes."""
