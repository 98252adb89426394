"""The synthetic hand: mesh, rig, skin, poses."""
