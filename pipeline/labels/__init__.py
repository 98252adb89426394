"""Labels on the device, one file per label group."""
