"""Atlas: a small world of true facts, from which the course makes its training texts."""
