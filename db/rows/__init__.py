"""From a session's record to the rows that are stored of it. Pure: no SQL, no I/O."""
