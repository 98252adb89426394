"""Object geometry: meshes, signed distances, symmetries, articulation."""
