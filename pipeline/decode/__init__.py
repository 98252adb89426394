"""From encoded images to crops: reading, DALI, the resident cache, the stream."""
