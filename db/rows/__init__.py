"""Makes the rows that are stored of a session's record. Pure: no SQL, no I/O."""
