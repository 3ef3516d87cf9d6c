"""What a camera program calls: a classifier of frames, and smoothing over frames."""
