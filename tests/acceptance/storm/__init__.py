"""A storm: signals strike a service at random moments, while its servers go away and its clients ask."""
