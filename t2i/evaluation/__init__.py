"""How edits of image hosts are judged: the judge protocol, erasure metrics, and the suite that runs them."""
