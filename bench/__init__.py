"""`make bench`: each figure beside something bare, measured in the same minute on the same machine."""
