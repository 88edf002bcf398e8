"""What is trained: data sets and what is done to them, models, losses."""
