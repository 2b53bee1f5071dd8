"""HTTP itself: the frame of a request, its body, its key, its errors and its answer."""
