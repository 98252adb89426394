"""Online half: store -> resident cache -> batches on the device."""
