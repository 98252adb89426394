"""The MANO hand model: files, layer, conventions."""
