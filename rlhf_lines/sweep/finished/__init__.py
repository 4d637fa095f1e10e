"""What is done with a finished sweep: its front, its report, further scores, export."""
