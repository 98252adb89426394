"""Reader of InterHand2.6M."""
