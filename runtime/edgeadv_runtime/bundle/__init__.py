"""What crosses to the device: the manifest and the files it vouches for, preprocessing, variants, confidence,
signature."""
