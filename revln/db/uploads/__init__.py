"""Store which tenant uploaded what, which jobs need it, and remove what nothing needs."""
