"""AGMH and Hamming search straight from their formulas: slow, readable, and the oracle of every test and bench."""
