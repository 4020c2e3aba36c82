"""What outlives the process: records in a journal and snapshots."""
