"""Many merged policies, sampled and scored on one loaded base."""
