"""Store collections: their items, log, generations, snapshots and filters."""
