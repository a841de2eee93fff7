"""Store webhooks: the endpoints' log and secrets, the outbox, and the deliveries that are due."""
