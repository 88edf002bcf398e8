"""The mathematics of loss landscapes, usable alone on anybody's model."""
