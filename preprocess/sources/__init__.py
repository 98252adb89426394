"""One module per dataset: official files -> canonical records."""
