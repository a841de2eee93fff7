"""What `revln eval` measures, through the Model contract alone: the figures are those of what is served."""
