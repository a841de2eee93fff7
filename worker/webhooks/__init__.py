"""Send webhook deliveries without letting one slow receiver hold up the others."""
