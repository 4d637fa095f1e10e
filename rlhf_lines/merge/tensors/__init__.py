"""Residuals read part by part: files, spans, precision, sums and order statistics."""
