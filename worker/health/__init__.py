"""Notice a worker that hangs or hears nothing, and end it in time."""
