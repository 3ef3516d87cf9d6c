"""One call for each thing that edgeadv does: names become objects, objects come back. Nothing here prints."""
