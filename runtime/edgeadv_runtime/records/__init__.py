"""What was measured, typed and versioned, and statistics on counts. No images, no backends."""
