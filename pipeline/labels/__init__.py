"""Labels on the device, one file a label group."""
