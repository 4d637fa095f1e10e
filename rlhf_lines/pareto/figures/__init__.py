"""Fronts as figures, drawn with matplotlib."""
