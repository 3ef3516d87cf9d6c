"""Labels and counts: the loop that scores artefacts, the masking verdict, the worst images, the release gate."""
