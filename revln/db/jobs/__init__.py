"""Submit jobs; claim, finish, split, retry and recover their chunks; read their state and results."""
