"""Load models, keep them while there is room, and batch what they compute."""
