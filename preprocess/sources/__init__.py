"""Dataset readers: one package per dataset, from official files to canonical records."""
