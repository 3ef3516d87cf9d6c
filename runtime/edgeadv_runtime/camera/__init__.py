"""The runtime in a camera application: sources of frames, and a stream that accounts for every one of them."""

from .frames import Frame, Source
from .sources import Folder, Memory, open_source
from .stream import Answer, Counts, Event, Stream

__all__ = ["Answer", "Counts", "Event", "Folder", "Frame", "Memory", "Source", "Stream", "open_source"]
