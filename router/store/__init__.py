"""The state that outlives the process: records in a journal and snapshots."""
