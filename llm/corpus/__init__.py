"""The embedded corpus and the general pool: how they were written, filtered and packed, and how to read them."""
