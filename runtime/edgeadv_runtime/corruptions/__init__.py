"""What cameras and the weather do to a picture: pixels to pixels, without a network."""
