// Only for its precompiled headers.
