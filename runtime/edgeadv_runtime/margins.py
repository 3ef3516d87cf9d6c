"""When is an image broken for good?"""

LEAVE_MARGIN = 0.1
