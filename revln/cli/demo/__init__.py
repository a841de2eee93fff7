"""Run the demo: sample photographs, one job of each kind, and a contact sheet of the results."""
