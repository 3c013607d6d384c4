"""The embedded miniature: aligned icon drawings, the captions that ask for them, and the models trained on them."""
